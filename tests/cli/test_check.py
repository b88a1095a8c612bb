from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mgpu.cli.app import app

EXAMPLE = Path(__file__).parents[2] / "broker.yaml"


def mgpu(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "broker.yaml"


def test_the_example_passes_and_is_summed_up() -> None:
    result = mgpu("check", "-c", str(EXAMPLE))

    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines == [
        f"{EXAMPLE} is valid: 4 consumers, 4 routes, listening on 127.0.0.1:7070",
        "consumer footprint loaded by unloaded by",
        "comfyui 9000 MiB its first job POST /free",
        "tts 2400 MiB POST /load POST /unload",
        "whisper 3200 MiB unit whisper.service unit whisper.service",
        "ollama not given itself itself",
        "route goes to",
        "/v1/image comfyui /prompt",
        "/v1/tts tts /tts",
        "/v1/transcribe whisper /inference",
        "/v1/generate ollama /api/generate",
        f"Next: mgpu serve -c {EXAMPLE}",
    ]


@pytest.mark.parametrize(
    ("way", "shown"),
    [("container: tts", "container tts"), ("command: [tts, --serve]", "command tts")],
)
def test_a_container_and_a_program_are_shown(file: Path, way: str, shown: str) -> None:
    file.write_text(f"consumers: {{tts: {{url: 'http://127.0.0.1:1', {way}}}}}")

    assert mgpu("check").stdout.count(shown) == 2


def test_a_second_way_to_unload_is_shown(file: Path) -> None:
    file.write_text(
        "consumers: {tts: {url: 'http://127.0.0.1:1', unload: {path: /u}, systemd_unit: tts}}"
    )

    result = mgpu("check")

    assert "unit tts" in result.stdout
    assert "POST /u, else unit tts" in result.stdout


def test_it_is_said_what_a_preset_filled_in_and_what_it_needs(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(file.parent / "xdg"))
    mine = file.parent / "presets" / "ollama.yaml"
    mine.parent.mkdir()
    mine.write_text("service: Mine\nconsumer: {unload: {path: /u}, footprint_mib: 1}")
    file.write_text(
        "consumers:\n"
        "  llm: {url: 'http://127.0.0.1:1', preset: ollama, footprint_mib: 2}\n"
        "  kokoro: {url: 'http://127.0.0.1:2', preset: kokoro-fastapi, unload: null}\n"
        "  stt: {url: 'http://127.0.0.1:3', preset: whisper-cpp, systemd_unit: whisper}\n"
    )

    result = mgpu("check")

    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert (
        "llm: preset ollama of presets/ollama.yaml, in the place of the one that comes with mgpu, "
        "fills in unload" in text
    )
    assert (
        "kokoro: preset kokoro-fastapi fills in "
        "residual_mib, health, models, not_activity, deny, paths" in text
    )
    assert "kokoro: Kokoro-FastAPI must have been started with ALLOW_DEV_UNLOAD=true" in text
    assert (
        "kokoro: Kokoro-FastAPI has no request that frees its VRAM: "
        "to be evicted it needs a systemd_unit, a container or a command" in text
    )
    assert "stt: whisper.cpp server has" not in text


def test_what_init_left_to_be_filled_in_is_a_problem(file: Path) -> None:
    file.write_text(
        "consumers:\n"
        "  llm:\n"
        "    url: http://127.0.0.1:1\n"
        "    preset: tabbyapi\n"
        "    parameters: {model: CHANGE-ME}\n"
    )

    result = mgpu("check")

    assert result.exit_code == 2
    assert result.stdout == (
        "broker.yaml:5: consumers.llm.parameters.model: still says CHANGE-ME: "
        "the folder name of the model to load\n"
    )


def test_it_is_said_what_leads_to_routes_of_openais_that_a_consumer_lacks(file: Path) -> None:
    workflow = "{file: w.json, places: {prompt: 1.inputs.text}}"
    file.with_name("w.json").write_text('{"1": {"inputs": {"text": ""}}}')
    file.write_text(
        "consumers:\n"
        f"  two: {{url: 'http://127.0.0.1:1', workflows: {{day: {workflow}, night: {workflow}}},"
        " completion: {requests: [POST /prompt], id: prompt_id,"
        " poll: {path: '/history/{id}', until: '@'}}}\n"
        "  none: {url: 'http://127.0.0.1:2', preset: automatic1111}\n"
        "  said: {url: 'http://127.0.0.1:3', preset: automatic1111,"
        " paths: {/v1/images/generations: /x}}\n"
        "  whole: {url: 'http://127.0.0.1:4'}\n"
        "models: {day: two, dusk: two, sd: none, sdxl: said, any: whole}\n"
        "routes:\n"
        "  /v1/images/edits: {consumer: two, path: /v1/images/edits}\n"
        "  /v1/draw: {consumer: none, path: /sdapi/v1/txt2img}\n"
    )

    result = mgpu("check")

    said = [line for line in result.stdout.splitlines() if line.startswith(("models.", "routes."))]
    assert result.exit_code == 0
    assert said == [
        "models.dusk: two has no workflow of that name, but day, night",
        "models.sd: none has none of OpenAI's routes that its preset knows of",
        "routes./v1/images/edits: two has no /v1/images/edits that is known of",
    ]


def test_every_problem_is_one_line_with_file_line_and_key(file: Path) -> None:
    file.write_text("server:\n  listn: x\ngpu:\n  devices: [0, 0]\n  lock: '[red]'\n")

    result = mgpu("check")

    assert result.exit_code == 2
    assert result.stdout.splitlines() == [
        "broker.yaml:2: server.listn: unknown key; did you mean listen?",
        "broker.yaml:4: gpu.devices: names GPU 0 2 times",
        "broker.yaml:5: gpu.lock: must be exclusive or shared, not '[red]'",
    ]


def test_without_a_file_the_default_one_is_missed(file: Path) -> None:
    result = mgpu("check")

    assert result.exit_code == 2
    assert result.stdout == (
        "broker.yaml: cannot be read: No such file or directory; "
        "mgpu init writes one, -c names another\n"
    )


def test_a_configuration_without_consumers_is_valid_and_told_what_is_next(file: Path) -> None:
    file.write_text("")

    result = mgpu("check", "--config", str(file))

    assert result.exit_code == 0
    assert "0 consumers, 0 routes" in result.stdout
    assert "Next: add a service" in result.stdout


def test_serve_refuses_a_configuration_that_is_not_valid(file: Path) -> None:
    file.write_text("server: {listen: '0.0.0.0:7070'}")

    result = mgpu("serve")

    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("mgpu: broker.yaml:1: server.listen: 0.0.0.0:7070 may be")
