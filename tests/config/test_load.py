import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from mgpu.config.files import MAX_FILE_BYTES
from mgpu.config.load import STAND_INS, load
from mgpu.config.model import (
    CancelConfig,
    CompletionConfig,
    Config,
    ConsumerConfig,
    HealthConfig,
    ListedConfig,
    LoadConfig,
    PollConfig,
    ResidentConfig,
    ResultsConfig,
    RouteConfig,
    WorkflowConfig,
)
from mgpu.config.problems import InvalidConfig, Problem

Write = Callable[[str], Path]
Problems = Callable[[str], list[str]]
Load = Callable[[str], Config]

EXAMPLE = Path(__file__).parents[2] / "broker.yaml"
TOO_DEEP = "not a JMESPath expression: maximum recursion depth exceeded"
TTS = """
    consumers:
      tts:
        url: http://127.0.0.1:8001
"""
COMPLETION = "completion: {requests: [POST /a], id: a, poll: {path: '/{id}', until: a}"


def test_the_example_at_the_top_of_the_repository_is_valid() -> None:
    config = load(EXAMPLE)

    assert list(config.consumers) == ["comfyui", "tts", "whisper", "ollama"]
    comfyui = config.consumers["comfyui"]
    assert comfyui.load is None
    assert comfyui.unload is not None
    assert comfyui.unload.body == {"unload_models": True, "free_memory": True}
    assert config.routes["/v1/image"] == RouteConfig(consumer="comfyui", path="/prompt")


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n", "null\n", "\ufeff"])
def test_an_empty_file_means_the_defaults(loaded: Load, text: str) -> None:
    assert loaded(text) == Config()


def test_a_section_with_everything_commented_out_means_the_defaults(loaded: Load) -> None:
    assert loaded("consumers:\n  # tts:\nserver:\n") == Config()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig) as raised:
        load(tmp_path / "absent.yaml")

    assert raised.value.problems == (
        Problem(
            str(tmp_path / "absent.yaml"),
            None,
            "",
            "cannot be read: No such file or directory; mgpu init writes one, -c names another",
        ),
    )


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_a_file_beyond_a_mebibyte_is_refused_unread(write: Write) -> None:
    with pytest.raises(InvalidConfig, match=f"is larger than {MAX_FILE_BYTES} bytes"):
        load(write("#" * (MAX_FILE_BYTES + 1)))


def test_text_that_is_not_utf_8_is_refused_with_its_line(write: Write) -> None:
    path = write("server:\n")
    path.write_bytes(b"server:\n  listen: \xff\xfe\n")

    with pytest.raises(InvalidConfig, match=r"broker\.yaml:2: is not UTF-8 text"):
        load(path)


def test_bad_syntax_is_shown_with_line_and_column(problems: Problems) -> None:
    (problem,) = problems("server:\n  listen: [1, 2\ngpu: {}\n")

    assert problem.startswith("3: column 4: ")


def test_every_problem_of_a_file_is_shown_at_once(problems: Problems) -> None:
    assert problems("""\
        server:
          listn: 127.0.0.1:7070
        gpu:
          lock: exlusive
          cushion_mib: lots
        consumers:
          tts:
            url: 127.0.0.1:8001
            can_coexist_with: [sst]
            unload: {pth: /unload}
          stt:
            footprint_mib: 100
            residual_mib: 200
        routes:
          /api/tts: {consumer: ttts, path: /tts}
        models: {voice: stt2}
        """) == [
        "2: server.listn: unknown key; did you mean listen?",
        "4: gpu.lock: must be exclusive or shared, not 'exlusive'",
        "5: gpu.cushion_mib: must be a whole number, not 'lots'",
        "8: consumers.tts.url: must be http://HOST[:PORT] or https://HOST[:PORT]",
        "9: consumers.tts.can_coexist_with[0]: no consumer is called 'sst'; did you mean stt?",
        "10: consumers.tts.unload.path: is required",
        "10: consumers.tts.unload.pth: unknown key; did you mean path?",
        "11: consumers.stt.url: is required",
        "13: consumers.stt.residual_mib: 200 is more than footprint_mib, 100",
        "15: routes./api/tts: /api is the broker's own",
        "15: routes./api/tts.consumer: no consumer is called 'ttts'; did you mean tts?",
        "16: models.voice: no consumer is called 'stt2'; did you mean stt?",
    ]


def test_a_route_that_is_no_path_does_not_hide_what_is_wrong_with_where_it_goes(
    problems: Problems,
) -> None:
    assert problems("""\
        consumers: {a: {url: http://127.0.0.1:1}}
        routes:
          v1/a: {consumer: a, path: a, pth: /a}
        """) == [
        "3: routes.v1/a: must start with /",
        "3: routes.v1/a.path: must start with /",
        "3: routes.v1/a.pth: unknown key; did you mean path?",
    ]


def test_an_unknown_key_that_resembles_none_is_answered_with_all(problems: Problems) -> None:
    assert problems("jobs: {zzz: 1}") == ["1: jobs.zzz: unknown key; known keys: database, trace"]


def test_what_rests_on_a_wrong_value_is_not_reported_too(problems: Problems) -> None:
    assert problems(f"""{TTS}
        footprint_mib: much
        residual_mib: 100
        """) == ["6: consumers.tts.footprint_mib: must be auto or a whole number, not 'much'"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("server: 5", "1: server: must be a mapping of keys, not 5"),
        ("consumers: [a]", "1: consumers: must be a mapping, not a list"),
        ("consumers: {tts: }", "1: consumers.tts: must be a mapping of keys, not empty"),
        ("gpu: {devices: some}", "1: gpu.devices: must be all or a list, not 'some'"),
        (
            "gpu: {devices: [0, {}]}",
            "1: gpu.devices[1]: must be a whole number or text, not a mapping",
        ),
        ("server: {allowed_hosts: a}", "1: server.allowed_hosts: must be a list, not 'a'"),
        ("server: {max_body_mib: 0}", "1: server.max_body_mib: must be greater than 0, not 0"),
        ("gpu: {cushion_mib: -1}", "1: gpu.cushion_mib: must be at least 0, not -1"),
        ("gpu: {cushion_mib: 1.5}", "1: gpu.cushion_mib: must be a whole number, not 1.5"),
        ("gpu: {cushion_mib: yes}", "1: gpu.cushion_mib: must be a whole number, not 'yes'"),
        ("gpu: {cushion_mib: true}", "1: gpu.cushion_mib: must be a number, not true or false"),
        (
            "server: {drain_timeout_s: 1:30}",
            "1: server.drain_timeout_s: must be a number, not '1:30'",
        ),
        ("scheduler: {max_wait_s: .inf}", "1: scheduler.max_wait_s: must be a finite number"),
        ("server: {listen: 7070}", "1: server.listen: must be text, not 7070"),
        (
            f"consumers: {{a: {{url: 'http://h', health: {{path: /, when: '{'(' * 5000}'}}}}}}",
            f"1: consumers.a.health.when: {TOO_DEEP}",
        ),
        ("routes: {v1: {consumer: a, path: /}}", "1: routes.v1: must start with /"),
    ],
)
def test_a_wrong_value_is_told_what_it_must_be(problems: Problems, text: str, problem: str) -> None:
    assert problem in problems(text)


@pytest.mark.parametrize("path", ["//other.example/x", "/\\other.example/x"])
@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("paths: {/v1/embeddings: 'PATH'}", "paths./v1/embeddings"),
        (COMPLETION.replace("/{id}", "PATH") + "}", "completion.poll.path"),
        (f"{COMPLETION}, listed: {{path: 'PATH', ids: a}}}}", "completion.listed.path"),
        (f"{COMPLETION}, results: {{path: 'PATH'}}}}", "completion.results.path"),
        (f"{COMPLETION}, cancel: [{{path: 'PATH'}}]}}", "completion.cancel[0].path"),
        ("workflows: {w: {file: f, path: 'PATH', places: {}}}", "workflows.w.path"),
        ("models: {path: 'PATH'}", "models.path"),
    ],
)
def test_a_path_that_may_mean_another_host_is_refused(
    problems: Problems, line: str, key: str, path: str
) -> None:
    found = problems(f"{TTS}        {line.replace('PATH', path)}\n")

    assert any(each.startswith(f"5: consumers.tts.{key}: must be a path") for each in found), found


def test_a_route_to_another_host_is_refused(problems: Problems) -> None:
    found = problems(f"{TTS}    routes: {{/v1/x: {{consumer: tts, path: //other.example/x}}}}\n")

    assert found == ["5: routes./v1/x.path: must be a path: no // and no /\\ at its start"]


def test_booleans_of_yaml_1_1_are_taken_where_a_boolean_belongs(loaded: Load) -> None:
    assert loaded(f"{TTS}        pinned: on\n").consumers["tts"].pinned


def test_booleans_of_yaml_1_1_are_refused_in_a_body(problems: Problems) -> None:
    (problem,) = problems(
        f"{TTS}        load: {{path: /load, body: {{fast: yes, name: nobody}}}}\n"
    )

    assert problem.startswith("5: consumers.tts.load.body.fast: yes is no text in YAML 1.1")


def test_names_stay_text_whatever_yaml_thinks_of_them(loaded: Load) -> None:
    config = loaded(
        """
        consumers:
          on: {url: "http://127.0.0.1:1"}
          010: {url: "http://127.0.0.1:2"}
        models: {3.10: on, no: 010x}
        """.replace("010x", "'010'")
    )

    assert list(config.consumers) == ["on", "010"]
    assert config.models == {"3.10": "on", "no": "010"}


def test_paths_are_relative_to_the_file(loaded: Load, tmp_path: Path) -> None:
    assert loaded("jobs: {database: jobs.db}").jobs.database == tmp_path / "jobs.db"


def test_every_required_key_has_a_valid_stand_in() -> None:
    sections: tuple[type[BaseModel], ...] = (
        ConsumerConfig,
        LoadConfig,
        HealthConfig,
        ResidentConfig,
        RouteConfig,
        CompletionConfig,
        PollConfig,
        ListedConfig,
        ResultsConfig,
        CancelConfig,
        WorkflowConfig,
    )
    for section in sections:
        required = {name for name, key in section.model_fields.items() if key.is_required()}
        assert required
        section.model_validate({name: STAND_INS[name] for name in required})


@pytest.mark.parametrize(
    "text",
    [
        "server: {api_keys: s3cret}",
        "server: {api_keys: [[s3cret]]}",
        "server: {api_keys: [*s3cret]}",
        "server: {api_keys: [!s3cret]}",
        "server: {api_keys: ['s3cret and more']}",
        "server: {api_keys_file: /s3cret}",
        "consumers: {a: {url: 'http://user:s3cret@h'}}",
        "consumers: {a: {url: 'http://user:s3cret@[h'}}",
        "consumers: {a: {url: 'http://user:s3cret@h:port'}}",
        "consumers: {a: {url: 'http://h', load: {path: /, headers: s3cret}}}",
        "consumers: {a: {url: 'http://h', load: {path: /, headers: {Authorization: [s3cret]}}}}",
        'consumers: {a: {url: "http://h", load: {path: /, headers: {X: "s3cret\\n"}}}}',
    ],
)
def test_a_message_never_shows_a_secret(problems: Problems, text: str) -> None:
    assert not any("s3cret" in problem for problem in problems(text))


def _mangled(text: str) -> st.SearchStrategy[str]:
    """The text with a few pieces cut out, moved or replaced."""
    piece = st.one_of(
        st.sampled_from(
            [": ", "- ", "{", "}", "[", "]", "'", '"', "\n", "\t", "&a", "*a", "<<: *a"]
        ),
        st.sampled_from(
            ["!!int x", "!!set", "? ", "|", "%", "0x", "-.inf", "~", "\\U", "\0", "(("]
        ),
        st.text(max_size=6),
    )
    place = st.integers(0, len(text))

    @st.composite
    def mangle(draw: st.DrawFn) -> str:
        result = text
        for _ in range(draw(st.integers(1, 4))):
            start, length = draw(place), draw(st.integers(0, 30))
            result = result[:start] + draw(piece) + result[start + length :]
        return result

    return mangle()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.one_of(_mangled(EXAMPLE.read_text(encoding="utf-8")), st.text(max_size=200)))
def test_a_mangled_file_is_a_config_or_a_list_of_problems(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broker.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")

    try:
        outcome: Config | tuple[Problem, ...] = load(path)
    except InvalidConfig as error:
        outcome = error.problems

    assert isinstance(outcome, Config) or all(problem.message for problem in outcome)
    assert outcome


def test_the_same_file_elsewhere_reads_the_same(tmp_path: Path) -> None:
    assert load(Path(shutil.copy(EXAMPLE, tmp_path))) == load(EXAMPLE)
