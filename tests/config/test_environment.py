from collections.abc import Callable

import pytest

from mgpu.config.model import Config, UnloadConfig

Problems = Callable[[str], list[str]]
Load = Callable[[str], Config]

FILE = """
    server: {listen: "127.0.0.1:1", max_body_mib: 7}
    consumers:
      my-tts: {url: "http://127.0.0.1:8001", unload: {path: /unload, timeout_s: 5}}
"""


def test_a_variable_wins_over_the_file_and_leaves_the_rest(
    loaded: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MGPU_SERVER__LISTEN", "127.0.0.1:2")

    server = loaded(FILE).server

    assert server.listen == "127.0.0.1:2"
    assert server.max_body_mib == 7


def test_a_variable_wins_over_a_default(loaded: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGPU_SCHEDULER__MAX_QUEUE", "9")

    assert loaded("").scheduler.max_queue == 9


def test_a_structure_is_given_as_json(loaded: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGPU_GPU__DEVICES", "[0, 1]")
    monkeypatch.setenv("MGPU_CONSUMERS", '{"stt": {"url": "http://127.0.0.1:2"}}')

    config = loaded(FILE)

    assert config.gpu.devices == (0, 1)
    assert set(config.consumers) == {"my-tts", "stt"}


def test_a_variable_finds_the_name_that_a_variable_cannot_spell(
    loaded: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MGPU_CONSUMERS__MY_TTS__UNLOAD__TIMEOUT_S", "9")

    consumers = loaded(FILE).consumers

    assert list(consumers) == ["my-tts"]
    assert consumers["my-tts"].unload == UnloadConfig(path="/unload", timeout_s=9.0)


def test_variables_of_the_client_are_no_configuration(
    loaded: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MGPU_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("MGPU_API_KEY", "k")

    assert loaded("") == Config()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MGPU_SERVER__LISTN", "x", "server.listn: unknown key; did you mean listen?"),
        ("MGPU_SERVR__LISTEN", "x", "servr: unknown section; did you mean server?"),
        ("MGPU_GPU", "0", "gpu: must be a mapping of keys, not 0"),
        ("MGPU_GPU", "{", "gpu: must be a mapping of keys, not '{'"),
        ("MGPU_GPU", '{"cushion_mib": -1}', "gpu.cushion_mib: must be at least 0, not -1"),
        ("MGPU_GPU__CUSHION_MIB", "a", "gpu.cushion_mib: must be a whole number, not 'a'"),
        ("MGPU_GPU__DEVICES", "[[]]", "gpu.devices[0]: must be a whole number or text, not a list"),
        ("MGPU_GPU__DEVICES", "[" * 9999, "gpu.devices: must be all or a list"),
        ("MGPU_SCHEDULER__MAX_WAIT_S", "inf", "scheduler.max_wait_s: must be a finite number"),
        ("MGPU_SERVER__LISTEN", "", "server.listen: must be HOST:PORT, [IPV6]:PORT or unix:/PATH"),
        ("MGPU_CONSUMERS__STT__PRIORITY", "1", "consumers.stt.url: is required"),
    ],
)
def test_a_problem_of_the_environment_names_the_variable(
    problems: Problems,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    message: str,
) -> None:
    monkeypatch.setenv(variable, value)

    assert problems(FILE) == [f"{variable}: {message}"]


def test_problems_of_file_and_environment_are_shown_together(
    problems: Problems, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MGPU_GPU__CUSHION_MIB", "a")

    assert problems("gpu: {lock: none}") == [
        "1: gpu.lock: must be exclusive or shared, not 'none'",
        "MGPU_GPU__CUSHION_MIB: gpu.cushion_mib: must be a whole number, not 'a'",
    ]
