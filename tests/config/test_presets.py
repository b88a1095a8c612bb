"""Presets: found by name, filled in under what the user wrote, and blamed for what is theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from mgpu.config import presets
from mgpu.config.load import load, read
from mgpu.config.model import Config, ConsumerConfig
from mgpu.config.openai import PATHS
from mgpu.config.placeholders import names_in
from mgpu.config.problems import InvalidConfig

Write = Callable[[str], Path]
Problems = Callable[[str], list[str]]
Load = Callable[[str], Config]
Own = Callable[..., Path]

BUILT_IN = sorted(path.stem for path in presets.BUILT_IN.glob("*.yaml"))
ALONE = """
    consumers:
      a:
        url: http://127.0.0.1:1
        preset: own
"""


@pytest.fixture(autouse=True)
def no_presets_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def own(tmp_path: Path) -> Own:
    """Write a preset of the user's, next to broker.yaml unless said otherwise."""

    def write(text: str, name: str = "own", folder: Path | None = None) -> Path:
        path = (folder or tmp_path / "presets") / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
        return path

    return write


# Those that come with the program


def every_parameter(preset: presets.Preset) -> str:
    given = ", ".join(f"{name}: x" for name in preset.parameters)
    return f"{{{given}}}"


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_preset_makes_a_valid_consumer_of_nothing_but_an_address(
    loaded: Load, name: str, tmp_path: Path
) -> None:
    preset = presets.find(name, tmp_path).preset
    config = loaded(f"""
        consumers:
          a:
            url: http://127.0.0.1:1
            preset: {name}
            parameters: {every_parameter(preset)}
        """).consumers["a"]

    assert config.model_fields_set >= set(preset.consumer)
    left = set(names_in(config.model_dump(exclude={"completion"}))) - {"item"}
    assert not left, "a place that nothing was put in"


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_preset_is_not_recognised_by_what_it_must_not_be_asked(name: str, tmp_path: Path) -> None:
    preset = presets.find(name, tmp_path).preset
    if preset.fingerprint is not None:
        shared = {"/api/ps", "/api/version", "/system_stats"}
        # One of these makes SGLang compute, one wakes a llama-server, the others unload.
        harmful = {"/health", "/slots", "/unload", "/release_memory_occupation"}
        assert preset.fingerprint.path not in shared | harmful


@pytest.mark.parametrize("name", BUILT_IN)
def test_it_is_known_for_which_models_openais_clients_ask_a_service(
    name: str, tmp_path: Path
) -> None:
    preset = presets.find(name, tmp_path).preset
    if any(path in PATHS for path in preset.routes):
        assert "models" in preset.consumer or preset.asked_as
    else:
        assert not preset.asked_as


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_preset_tells_its_gotchas_and_its_port(name: str, tmp_path: Path) -> None:
    found = presets.find(name, tmp_path)
    text = found.path.read_text()

    assert text.startswith("# ")
    assert found.preset.ports
    assert found.built_in


@pytest.mark.parametrize(
    "name", ["automatic1111", "comfyui", "forge", "sdnext", "stable-diffusion-cpp", "swarmui"]
)
def test_a_video_has_an_hour_also_when_others_stand_before_it(loaded: Load, name: str) -> None:
    config = loaded(f"consumers: {{a: {{url: 'http://127.0.0.1:1', preset: {name}}}}}")
    a = config.consumers["a"]

    assert a.job_timeout_s / a.concurrency >= 3600


# What wins


OWN = """\
    service: Own
    consumer:
      footprint_mib: 100
      unload: {path: /free, body: {all: true}, timeout_s: 5}
      health: {path: /health}
      not_activity: [GET /a, GET /b]
      headers: {X-A: "1"}
"""


def test_where_it_has_openais_paths_is_filled_in_from_its_routes(own: Own, loaded: Load) -> None:
    own("""
        service: Mine
        routes: {/v1/audio/speech: /say, /v1/rerank: /rank, /v1/tts: /say}
        consumer:
          health: {path: /health}
          paths: {/v1/rerank: /rerank, /v1/score: /score}
    """)

    consumer = loaded(f"{ALONE}        paths: {{/v1/score: /mine}}").consumers["a"]

    assert consumer.paths == {
        "/v1/audio/speech": "/say",
        "/v1/rerank": "/rerank",
        "/v1/score": "/mine",
    }


def test_a_preset_fills_in_what_the_user_did_not_say(own: Own, loaded: Load) -> None:
    own(OWN)
    a = loaded(ALONE).consumers["a"]

    assert (a.preset, a.footprint_mib, a.not_activity) == ("own", 100, ("GET /a", "GET /b"))
    assert a.unload is not None
    assert (a.unload.path, a.unload.body) == ("/free", {"all": True})


def test_the_user_wins_key_by_key_and_lists_and_bodies_are_whole(own: Own, loaded: Load) -> None:
    own(OWN)
    a = loaded(f"""{ALONE}
        footprint_mib: 200
        unload: {{timeout_s: 9, body: {{some: true}}}}
        not_activity: [GET /c]
        headers: {{X-B: "2"}}
        health: null
    """).consumers["a"]

    assert a.footprint_mib == 200
    assert a.unload is not None
    assert (a.unload.path, a.unload.timeout_s, a.unload.body) == ("/free", 9, {"some": True})
    assert a.not_activity == ("GET /c",)
    assert a.headers == {"X-A": "1", "X-B": "2"}
    assert a.health is None


def test_a_request_with_a_path_of_its_own_takes_nothing_of_the_preset_s(
    own: Own, loaded: Load
) -> None:
    own(OWN)
    a = loaded(f"{ALONE}        unload: {{path: /mine}}\n").consumers["a"]

    assert a.unload is not None
    assert (a.unload.path, a.unload.body, a.unload.timeout_s) == ("/mine", None, 30)


def test_the_environment_wins_over_both(
    own: Own, loaded: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    own(OWN)
    monkeypatch.setenv("MGPU_CONSUMERS__A__FOOTPRINT_MIB", "7")

    assert loaded(ALONE).consumers["a"].footprint_mib == 7


def test_it_is_told_what_came_from_where(own: Own, write: Write) -> None:
    path = own(OWN)
    filled = read(
        write(f"{ALONE}        footprint_mib: 1\n        unload: {{timeout_s: 9}}\n")
    ).filled

    assert filled["a"].found.path == path
    assert filled["a"].keys == ("unload", "health", "not_activity", "headers")


def test_only_consumers_with_a_preset_are_touched(own: Own, loaded: Load) -> None:
    own(OWN)
    config = loaded(f"{ALONE}      b: {{url: 'http://127.0.0.1:2'}}\n")

    assert config.consumers["b"] == ConsumerConfig(url="http://127.0.0.1:2")


# Where they are looked for


def test_next_to_the_file_comes_before_the_user_s_own_and_both_before_the_built_in_one(
    own: Own, write: Write, tmp_path: Path
) -> None:
    file = write("consumers: {a: {url: 'http://127.0.0.1:1', preset: ollama}}")
    found = [read(file).filled["a"].found]
    for folder in (tmp_path / "xdg" / "mgpu" / "presets", tmp_path / "presets"):
        own("service: Mine\nconsumer: {footprint_mib: 1}", "ollama", folder)
        found.append(read(file).filled["a"].found)

    assert [each.path.parent for each in found] == [
        presets.BUILT_IN,
        tmp_path / "xdg" / "mgpu" / "presets",
        tmp_path / "presets",
    ]
    assert [each.hides_a_built_in_one for each in found] == [False, True, True]


@pytest.mark.parametrize(
    "name", ["../presets/own", "/etc/passwd", "..", ".own", "own/../own", "own%2f", "x" * 65, ""]
)
def test_a_name_that_leads_elsewhere_is_no_preset(own: Own, problems: Problems, name: str) -> None:
    own(OWN)
    (problem,) = problems(ALONE.replace("own", f"'{name}'"))

    assert problem.startswith(f"5: consumers.a.preset: no preset is called {name!r}")


def test_an_unknown_preset_names_the_nearest(problems: Problems) -> None:
    assert problems(ALONE.replace("own", "comfy-ui")) == [
        "5: consumers.a.preset: no preset is called 'comfy-ui'; did you mean comfyui?"
    ]


def test_a_preset_is_text(problems: Problems) -> None:
    assert problems(ALONE.replace("own", "[ollama]")) == [
        "5: consumers.a.preset: must be text, not a list"
    ]


def test_there_is_a_folder_to_look_in_without_a_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))

    assert tmp_path / ".config/mgpu/presets" in presets.folders(tmp_path)


# Parameters

TAKES_A_MODEL = """\
    service: Own
    parameters:
      model: {description: what to load}
    consumer:
      load: {path: "/load/{model}?m={model}", body: {name: "{model}", n: 1, deep: ["{model}"]}}
      resident: {path: /r, when: "name == '{model}'"}
      unload: {path: "/u/{gpu_index}", headers: {X-Model: "is {model}"}}
      health: {path: /h}
"""


def with_model(value: str) -> str:
    return f"{ALONE}        parameters: {{model: {value}}}\n"


def test_a_parameter_is_put_into_its_places_as_each_needs_it(own: Own, loaded: Load) -> None:
    own(TAKES_A_MODEL)
    a = loaded(with_model('"a/b c\'d&é"')).consumers["a"]

    assert a.load is not None
    assert a.load.path == "/load/a/b%20c%27d%26%C3%A9?m=a%2Fb%20c%27d%26%C3%A9"
    assert a.load.body == {"name": "a/b c'd&é", "n": 1, "deep": ["a/b c'd&é"]}
    assert a.resident is not None
    assert a.resident.when == "name == 'a/b c\\'d&é'"
    assert a.unload is not None
    assert a.unload.headers == {"X-Model": "is a/b c'd&é"}


def test_what_is_filled_in_later_is_left_alone(own: Own, loaded: Load) -> None:
    own(TAKES_A_MODEL)
    a = loaded(with_model("m")).consumers["a"]

    assert a.unload is not None
    assert a.unload.path == "/u/{gpu_index}"


def test_what_needs_a_parameter_that_was_not_given_is_left_out(own: Own, loaded: Load) -> None:
    own(TAKES_A_MODEL)
    a = loaded(ALONE).consumers["a"]

    assert (a.load, a.resident, a.unload) == (None, None, None)
    assert a.health is not None


def test_a_default_stands_in(own: Own, loaded: Load) -> None:
    own(TAKES_A_MODEL.replace("what to load", "what, default: usual"))
    a = loaded(ALONE).consumers["a"]

    assert a.load is not None
    assert a.load.path == "/load/usual?m=usual"


def test_a_required_parameter_is_asked_for(own: Own, problems: Problems) -> None:
    own(TAKES_A_MODEL.replace("what to load", "what to load, required: true"))

    assert problems(ALONE) == ["5: consumers.a.preset: own needs parameters.model: what to load"]


def test_an_unknown_parameter_names_the_nearest(own: Own, problems: Problems) -> None:
    own(TAKES_A_MODEL)

    assert problems(f"{ALONE}        parameters: {{modle: m}}\n") == [
        "6: consumers.a.parameters.modle: the preset own has no such parameter; did you mean model?"
    ]


@pytest.mark.parametrize("value", ["..", "a/../b", "/a", "a//b", "''", "a/"])
def test_a_parameter_that_would_lead_to_another_path_is_refused(
    own: Own, problems: Problems, value: str
) -> None:
    own(TAKES_A_MODEL)
    (problem,) = problems(with_model(value))

    assert problem == (
        "6: consumers.a.parameters: "
        "a value of it has an empty, '.' or '..' segment and cannot be part of a path (load.path)"
    )


def test_parameters_without_a_preset_are_nobody_s(problems: Problems) -> None:
    assert problems("consumers: {a: {url: 'http://127.0.0.1:1', parameters: {model: m}}}") == [
        "1: consumers.a.parameters: are a preset's, and no preset is named"
    ]


@pytest.mark.parametrize(("value", "what"), [("[m]", "a list"), ("5", "5"), ("null", "empty")])
def test_parameters_are_text(own: Own, problems: Problems, value: str, what: str) -> None:
    own(TAKES_A_MODEL)

    assert problems(with_model(value)) == [
        f"6: consumers.a.parameters.model: must be text, not {what}"
    ]


def test_parameters_are_a_mapping(own: Own, problems: Problems) -> None:
    own(TAKES_A_MODEL)

    assert problems(f"{ALONE}        parameters: m\n") == [
        "6: consumers.a.parameters: must be a mapping, not 'm'"
    ]


# A preset that is wrong


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("consumer: {footprint_mib: 1}", "service: is required"),
        ("service: X", "consumer: is required"),
        ("service: X\nconsumer: {}", "2: consumer: must be not empty, not a mapping"),
        (
            "service: X\nport: 1\nconsumer: {footprint_mib: 1}",
            "2: port: unknown key; did you mean ports?",
        ),
        (
            "service: X\nconsumer:\n  unlod: {path: /x}",
            "3: consumer.unlod: unknown key; did you mean unload?",
        ),
        (
            "service: X\nconsumer:\n  url: http://evil.example",
            "3: consumer.url: is for broker.yaml: it says where a service runs, not what it is",
        ),
        (
            "service: X\nconsumer:\n  command: [rm]",
            "3: consumer.command: is for broker.yaml: it says where a service runs, not what it is",
        ),
        (
            (
                "service: X\nparameters: {model: {description: m}}\nconsumer:\n"
                "  load: {path: '/{modle}'}"
            ),
            "4: consumer.load: {modle} is no parameter of this preset; did you mean model?",
        ),
        (
            "service: X\nparameters: {item: {description: m}}\nconsumer: {footprint_mib: 1}",
            "2: parameters.item: is a name that is filled in when the call is made",
        ),
        (
            (
                "service: X\nparameters: {m: {description: m, required: true, default: a}}\n"
                "consumer: {footprint_mib: 1}"
            ),
            "2: parameters.m: required and default exclude each other",
        ),
        (
            "service: X\nfingerprint: {path: /x}\nconsumer: {footprint_mib: 1}",
            "2: fingerprint: when or contains is required",
        ),
        (
            (
                "service: X\nfingerprint: {path: 'http://evil.example', contains: x}\n"
                "consumer: {footprint_mib: 1}"
            ),
            "2: fingerprint.path: must start with /",
        ),
        (
            "service: X\nconsumer:\n  load: {path: /x, body: {a: yes}}",
            (
                "3: consumer.load.body.a: yes is no text in YAML 1.1: quote it, or write true, "
                "false or 90"
            ),
        ),
        ("service: X\nservice: Y\nconsumer: {a: 1}", "2: service: given twice, first on line 1"),
        ("service: [", "1: column 11: "),
    ],
)
def test_it_is_reported_with_its_own_file_line_and_key(
    own: Own, write: Write, text: str, problem: str
) -> None:
    path = own(text)
    with pytest.raises(InvalidConfig) as raised:
        load(write(ALONE))

    found = [str(each).removeprefix(f"{path}:").strip() for each in raised.value.problems]
    assert any(each.startswith(problem) for each in found), found


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            "  footprint_mib: much",
            "consumers.a.footprint_mib: must be auto or a whole number, not 'much'",
        ),
        ("  health: {path: /h, when: '['}", "consumers.a.health.when: not a JMESPath expression"),
        ("  load: {path: //evil.example/x}", "consumers.a.load.path: must be a path in ASCII"),
        ("  not_activity: [queue]", "consumers.a.not_activity[0]: must be METHOD /PATH"),
        ("  unload: {timeout_s: 1}", "consumers.a.unload.path: is required"),
        ("  unload: {path: /u, headers: {Host: evil}}", "consumers.a.unload.headers.Host: is the"),
        ("  unload: {path: /u, until_absent: true}", "consumers.a.unload.until_absent: needs"),
    ],
)
def test_a_value_that_does_not_fit_is_reported_where_the_preset_has_it(
    own: Own, write: Write, line: str, problem: str
) -> None:
    path = own(f"service: X\nconsumer:\n{line}\n")
    with pytest.raises(InvalidConfig) as raised:
        load(write(ALONE))

    (found,) = map(str, raised.value.problems)
    assert found.startswith(f"{path}:3: {problem}")


def test_a_value_of_the_user_s_is_reported_where_the_user_has_it(
    own: Own, problems: Problems
) -> None:
    own(OWN)

    assert problems(f"{ALONE}        unload: {{timeout_s: -1}}\n") == [
        "6: consumers.a.unload.timeout_s: must be greater than 0.0, not -1"
    ]


def test_a_preset_that_cannot_be_read_is_told_so(own: Own, write: Write) -> None:
    path = own("")
    path.write_bytes(b"\xff")
    with pytest.raises(InvalidConfig, match=f"{path}:1: is not UTF-8 text"):
        load(write(ALONE))


def test_what_a_service_needs_is_measured_unless_somebody_says_it(loaded: Load) -> None:
    consumers = loaded("""
        consumers:
          said: {url: "http://127.0.0.1:1", preset: comfyui, footprint_mib: 9000}
          not-said: {url: "http://127.0.0.1:2", preset: comfyui}
        """).consumers
    assert consumers["said"].footprint_mib == 9000
    assert consumers["not-said"].footprint_mib == "auto"
