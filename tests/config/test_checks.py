from collections.abc import Callable
from pathlib import Path

import pytest

from mgpu.config.model import Config
from mgpu.config.patterns import WHAT_A_PATTERN_IS

Problems = Callable[[str], list[str]]
Load = Callable[[str], Config]


def _tts(keys: str) -> str:
    return f'consumers: {{tts: {{url: "http://127.0.0.1:8001", {keys}}}}}'


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:7070", "'[::]:7070'", "10.0.0.1:7070", "gpu-box:7070", "nowhere.invalid:1"]
)
def test_listening_off_loopback_without_keys_is_refused(problems: Problems, listen: str) -> None:
    (problem,) = problems(f"server: {{listen: {listen}}}")

    assert problem.startswith("1: server.listen: ")
    assert "may be reached from other machines: set server.api_keys" in problem


@pytest.mark.parametrize("listen", ["0.0.0.0:9001", "'[::]:9001'", "gpu-box:9001"])
def test_a_consumers_port_off_loopback_needs_keys_too(problems: Problems, listen: str) -> None:
    (problem,) = problems(_tts(f"listen: {listen}"))

    assert problem.startswith("1: consumers.tts.listen: ")
    assert "may be reached from other machines: set server.api_keys" in problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            _tts("listen: '9001'"),
            "consumers.tts.listen: must be HOST:PORT, [IPV6]:PORT or unix:/PATH",
        ),
        (
            _tts("listen: localhost:7070"),
            "consumers.tts.listen: localhost:7070 is taken by server.listen",
        ),
        (
            _tts("listen: localhost:8001"),
            "consumers.tts.url: is the broker's own address, consumers.tts.listen",
        ),
        (
            _tts("listen: 127.0.0.1:8002")[:-1]
            + ", b: {url: 'http://127.0.0.1:8003', listen: '127.0.0.1:8002'}}",
            "consumers.b.listen: 127.0.0.1:8002 is taken by consumers.tts.listen",
        ),
        (
            _tts("listen: 'unix:/run/a'")[:-1]
            + ", b: {url: 'http://127.0.0.1:8003', listen: 'unix:/run/a'}}",
            "consumers.b.listen: unix:/run/a is taken by consumers.tts.listen",
        ),
        (
            "server: {listen: '0.0.0.0:8001', api_keys: [k]}\n" + _tts(""),
            "consumers.tts.url: is the broker's own address",
        ),
    ],
)
def test_nobody_else_may_have_an_address_that_is_listened_on(
    problems: Problems, text: str, problem: str
) -> None:
    assert [found.partition(": ")[2] for found in problems(text)] == [problem]


def test_ports_that_only_resemble_each_other_are_free(loaded: Load) -> None:
    loaded(_tts("listen: 127.0.0.2:7070"))
    loaded(
        _tts("listen: '127.0.0.1:0'")[:-1]
        + ", b: {url: 'http://10.0.0.1:80', listen: 'localhost:0'}}"
    )
    loaded(
        "server: {listen: '0.0.0.0:8001', api_keys: [k]}\nconsumers: {a: {url: 'http://10.0.0.9:8001'}}"
    )


def test_listening_off_loopback_with_keys_is_fine(loaded: Load, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.touch(0o600)
    keys.write_text("a-key\n")

    for given in ("api_keys: [a-key]", "api_keys_file: keys"):
        config = loaded(f"server: {{listen: '0.0.0.0:7070', {given}}}")
        assert config.server.listen == "0.0.0.0:7070"


def test_a_keys_file_that_cannot_be_used_is_refused(problems: Problems) -> None:
    assert problems("server: {listen: '0.0.0.0:7070', api_keys_file: absent}") == [
        "1: server.api_keys_file: cannot be read: No such file or directory"
    ]


@pytest.mark.parametrize("key", ["''", "' '", "'a key'", "clé"])
def test_a_key_that_no_client_can_send_is_refused(problems: Problems, key: str) -> None:
    assert problems(f"server: {{api_keys: [fine, {key}]}}") == [
        "1: server.api_keys[1]: a key is printable ASCII without blanks"
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (_tts("gpus: []"), "consumers.tts.gpus: must name at least one GPU"),
        (_tts("gpus: [1, 0, 1]"), "consumers.tts.gpus: names GPU 1 2 times"),
        ("gpu: {devices: []}", "gpu.devices: must name at least one GPU"),
        ("gpu: {devices: [GPU-a, GPU-a]}", "gpu.devices: names GPU GPU-a 2 times"),
        ("gpu: {devices: [-1]}", "gpu.devices[0]: must be at least 0"),
        (
            f"{_tts('gpus: [0, 1]')}\ngpu: {{devices: [0]}}",
            "consumers.tts.gpus[1]: GPU 1 is not in gpu.devices",
        ),
        (
            _tts("footprint_mib: 10, residual_mib: 11"),
            "consumers.tts.residual_mib: 11 is more than footprint_mib, 10",
        ),
        (_tts("load: {path: /, ok: []}"), "consumers.tts.load.ok: must name at least one status"),
        (
            _tts("health: {path: /, ok: []}"),
            "consumers.tts.health.ok: must name at least one status",
        ),
        (
            _tts('unload: {path: /, headers: {"X Y": a}}'),
            "consumers.tts.unload.headers.X Y: cannot be sent as a header",
        ),
        (
            _tts('load: {path: /, headers: {X: "a\\r\\nb"}}'),
            "consumers.tts.load.headers.X: cannot be sent as a header",
        ),
        (
            _tts("not_activity: [GET /queue, /queue]"),
            f"consumers.tts.not_activity[1]: {WHAT_A_PATTERN_IS}",
        ),
        (
            _tts("not_activity: [get /queue]"),
            f"consumers.tts.not_activity[0]: {WHAT_A_PATTERN_IS}",
        ),
        (_tts("deny: [DELETE]"), f"consumers.tts.deny[0]: {WHAT_A_PATTERN_IS}"),
        (
            _tts("drop_headers: [X-A, X B]"),
            "consumers.tts.drop_headers[1]: cannot be sent as a header",
        ),
        (
            _tts("headers: {Transfer-Encoding: chunked}"),
            "consumers.tts.headers.Transfer-Encoding: is the broker's to set",
        ),
        (
            'consumers: {a: {url: "http://127.0.0.1:7070"}}',
            "consumers.a.url: is the broker's own address",
        ),
        (
            "models: {voice: nobody}",
            "models.voice: no consumer is called 'nobody'; there are no consumers",
        ),
    ],
)
def test_what_cannot_work_is_refused(problems: Problems, text: str, problem: str) -> None:
    assert problems(text) == [f"1: {problem}"]


@pytest.mark.parametrize("name", ["''", "a/b", "-a", ".", "..", "a b", "é", "x" * 65])
def test_a_name_that_does_not_fit_into_a_path_is_refused(problems: Problems, name: str) -> None:
    (problem,) = problems(f'consumers: {{{name}: {{url: "http://127.0.0.1:1"}}}}')

    assert "a name is letters, digits, '.', '_' and '-', 64 at most" in problem


@pytest.mark.parametrize("unit", ["a b", "-H", "a/b.service", "''", "é.service", "x" * 256, "a;b"])
def test_a_malformed_unit_is_refused(problems: Problems, unit: str) -> None:
    (problem,) = problems(_tts(f"systemd_unit: {unit}"))

    assert problem.endswith("is not the name of a systemd unit")


@pytest.mark.parametrize("unit", ["tts@.service", "tts@"])
def test_a_unit_that_is_only_a_template_is_refused(problems: Problems, unit: str) -> None:
    (problem,) = problems(_tts(f"systemd_unit: '{unit}'"))

    assert "is a template: name an instance" in problem


@pytest.mark.parametrize("unit", ["tts.service", "tts@1.service", "tts", r"a\x2db.service"])
def test_a_unit_is_taken_as_systemctl_takes_it(loaded: Load, unit: str) -> None:
    assert loaded(_tts(f"systemd_unit: '{unit}'")).consumers["tts"].systemd_unit == unit


@pytest.mark.parametrize(
    ("path", "own"),
    [
        ("/api", "/api"),
        ("/api/status", "/api"),
        ("/consumers/tts", "/consumers"),
        ("/healthz", "/healthz"),
        ("/readyz/", "/readyz"),
        ("/metrics", "/metrics"),
        ("/openapi.json", "/openapi.json"),
    ],
)
def test_a_route_must_not_hide_the_broker_s_own(problems: Problems, path: str, own: str) -> None:
    text = f"{_tts('')}\nroutes: {{{path}: {{consumer: tts, path: /}}}}"

    assert problems(text) == [f"2: routes.{path}: {own} is the broker's own"]


def test_the_root_is_the_broker_s_own_page(problems: Problems) -> None:
    text = f"{_tts('')}\nroutes: {{/: {{consumer: tts, path: /}}}}"

    assert problems(text) == ["2: routes./: is the broker's own page"]


@pytest.mark.parametrize("path", ["/a//b", "/a/../b", "/./a", "//a"])
def test_a_route_that_is_never_asked_for_is_refused(problems: Problems, path: str) -> None:
    text = f"{_tts('')}\nroutes: {{{path}: {{consumer: tts, path: /}}}}"

    assert problems(text) == [f"2: routes.{path}: must have no empty, '.' or '..' segment"]


@pytest.mark.parametrize("path", ["'/a?b=c'", "'/a#b'", "/a%2fb", "'/a b'", "/é"])
def test_a_route_is_a_plain_path(problems: Problems, path: str) -> None:
    (problem,) = problems(f"{_tts('')}\nroutes: {{{path}: {{consumer: tts, path: /}}}}")

    assert problem.endswith("must be a plain path: no query, fragment, blank or escape")


def test_a_slash_at_the_end_makes_no_other_route(problems: Problems) -> None:
    to = "{consumer: tts, path: /}"

    assert problems(f"{_tts('')}\nroutes: {{/a: {to}, /a/: {to}}}") == [
        "2: routes./a/: is the same route as /a"
    ]


def test_names_that_only_begin_alike_are_free(loaded: Load) -> None:
    text = f"{_tts('')}\nroutes: {{/apify: {{consumer: tts, path: /}}}}"

    assert list(loaded(text).routes) == ["/apify"]


def test_everybody_may_be_coexisted_with_and_urls_may_be_shared(loaded: Load) -> None:
    config = loaded("""
        consumers:
          a: {url: "http://127.0.0.1:1", can_coexist_with: ["*"]}
          b: {url: "http://127.0.0.1:1", can_coexist_with: [a]}
        """)

    assert config.consumers["a"].can_coexist_with == ("*",)


# Units, containers and programs


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        (
            "systemd_unit: tts, container: tts",
            "1: consumers.tts.container: cannot stand next to systemd_unit: only one may start it",
        ),
        (
            "container: tts, command: tts --serve",
            "1: consumers.tts.command: cannot stand next to container: only one may start it",
        ),
        (
            "container: ../tts",
            "1: consumers.tts.container: '../tts' is not the name or id of a container",
        ),
        (
            "container: tts, container_socket: tcp://10.0.0.1:2375",
            "1: consumers.tts.container_socket: must be unix:///PATH or /PATH",
        ),
        (
            "container_socket: /run/docker.sock",
            "1: consumers.tts.container_socket: is only for a consumer with container",
        ),
        ("cwd: /srv", "1: consumers.tts.cwd: is only for a consumer with command"),
        (
            "environment: {A: b}",
            "1: consumers.tts.environment: is only for a consumer with command",
        ),
        (
            "command: tts, environment: {A=B: c}",
            "1: consumers.tts.environment.A=B: is not the name of a variable",
        ),
        (
            "command: tts, vram_managed: true",
            "1: consumers.tts.command: nobody would start it: with vram_managed, nothing is loaded",
        ),
        (
            "command: tts, initially: resident",
            "1: consumers.tts.initially: a command is not running when the broker starts",
        ),
    ],
)
def test_what_starts_a_consumer_must_make_sense(
    problems: Problems, keys: str, problem: str
) -> None:
    assert problems(_tts(keys)) == [problem]


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("[]", "must name a program"),
        ("''", "must name a program"),
        ('"tts \'unfinished"', "No closing quotation"),
    ],
)
def test_a_command_must_name_a_program(problems: Problems, command: str, problem: str) -> None:
    assert problems(_tts(f"command: {command}")) == [f"1: consumers.tts.command: {problem}"]


@pytest.mark.parametrize(
    "command", ["[tts, --voice, two words, $HOME]", "tts --voice 'two words' $HOME"]
)
def test_a_command_is_a_list_or_a_line_and_no_shell_reads_it(loaded: Load, command: str) -> None:
    consumer = loaded(_tts(f"command: {command}")).consumers["tts"]
    assert consumer.command == ("tts", "--voice", "two words", "$HOME")


def test_a_folder_is_found_from_the_files_own_and_numbers_are_text(
    loaded: Load, tmp_path: Path
) -> None:
    keys = "command: tts, cwd: models, environment: {CUDA_VISIBLE_DEVICES: 0}"
    consumer = loaded(_tts(keys)).consumers["tts"]
    assert consumer.cwd == tmp_path / "models"
    assert consumer.environment == {"CUDA_VISIBLE_DEVICES": "0"}


LLM = """\
consumers:
  llm: {url: "http://127.0.0.1:8001", load: {path: /load, body: {ctx: 1}}, unload: {path: /unload}}
  lazy: {url: "http://127.0.0.1:8002", unload: {path: /unload}}
routes:
"""


def test_a_route_may_have_load_options(loaded: Load) -> None:
    route = '  /v1/long: {consumer: llm, path: /, load_body: {ctx: 2, gpu: "{gpu_index}"}}'
    assert loaded(LLM + route).routes["/v1/long"].load_body == {"ctx": 2, "gpu": "{gpu_index}"}


@pytest.mark.parametrize(
    ("route", "problem"),
    [
        (
            "{consumer: lazy, path: /, load_body: {ctx: 2}}",
            "lazy takes no such load options: it has no load request to send them with",
        ),
        (
            '{consumer: llm, path: /, load_body: {gpu: "{gpu_indx}"}}',
            "{gpu_indx} stands for nothing; did you mean gpu_index?",
        ),
        ("{consumer: llm, path: /, load_body: [1]}", "must be a mapping"),
    ],
)
def test_load_options_that_no_load_can_be_given_are_refused(
    problems: Problems, route: str, problem: str
) -> None:
    (found,) = problems(f"{LLM}  /v1/long: {route}")
    assert found.startswith("5: routes./v1/long.load_body: ")
    assert problem in found


def test_load_options_of_a_consumer_that_is_not_there_are_not_looked_at(
    problems: Problems,
) -> None:
    (found,) = problems(f"{LLM}  /v1/long: {{consumer: none, path: /, load_body: {{ctx: 2}}}}")
    assert "no consumer is called 'none'" in found
