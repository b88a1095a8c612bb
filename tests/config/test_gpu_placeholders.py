"""Names in braces that are filled in with the GPUs a consumer is loaded on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mgpu.config import gpu_placeholders
from mgpu.config.model import Config, ConsumerConfig
from mgpu.ports import Placement

Problems = Callable[[str], list[str]]
Load = Callable[[str], Config]

ONE = Placement((1,), ("GPU-b",))
TWO = Placement((0, 1), ("GPU-a", "GPU-b"))


@pytest.mark.parametrize(
    ("value", "on_one", "on_two"),
    [
        ("{gpu_index}", 1, "0,1"),
        ("{gpu_uuid}", "GPU-b", "GPU-a,GPU-b"),
        ("cuda:{gpu_index}", "cuda:1", "cuda:0,1"),
        ({"a": [{"b": "{gpu_index}"}, 7]}, {"a": [{"b": 1}, 7]}, {"a": [{"b": "0,1"}, 7]}),
        ({"{gpu_index}": True}, {"{gpu_index}": True}, {"{gpu_index}": True}),
        ("{{gpu_index}}", "{gpu_index}", "{gpu_index}"),
    ],
)  # fmt: skip
def test_a_body_is_filled_in_at_any_depth(value: Any, on_one: Any, on_two: Any) -> None:
    assert gpu_placeholders.fill_json(value, ONE) == on_one
    assert gpu_placeholders.fill_json(value, TWO) == on_two


@pytest.mark.parametrize(
    "text", ['{"a": {"b": 1}}', "{{ name }}", "{{name}}", "{% if x %}{y}{% endif %}", "{}", "{0}"]
)
def test_other_braces_in_a_body_are_left_as_they_are(text: str) -> None:
    assert gpu_placeholders.fill_json(text, ONE) == text
    assert list(gpu_placeholders.mistyped({"prompt": [text]})) == []


def test_a_units_name_is_escaped_as_systemd_does() -> None:
    assert gpu_placeholders.fill_unit("llm@{gpu_index}.service", ONE) == "llm@1.service"
    assert gpu_placeholders.fill_unit("llm@{gpu_index}", TWO) == r"llm@0\x2c1"
    assert gpu_placeholders.fill_unit("my-llm@{gpu_uuid}", ONE) == r"my-llm@GPU\x2db"


def test_a_consumer_is_filled_in_wherever_placeholders_may_stand() -> None:
    config = ConsumerConfig.model_validate(
        {
            "url": "http://127.0.0.1:1",
            "load": {"path": "/load/{gpu_index}", "body": {"gpu": "{gpu_index}"}},
            "unload": {"path": "/unload", "headers": {"X-GPU": "{gpu_index}"}},
            "systemd_unit": "llm@{gpu_index}.service",
            "container": "llm-{gpu_index}",
            "command": ["serve", "--main-gpu={gpu_index}", "{{ prompt }}"],
            "environment": {"CUDA_VISIBLE_DEVICES": "{gpu_uuid}", "X": "{y}"},
        }
    )

    filled = gpu_placeholders.fill_consumer(config, ONE)

    assert filled.load is not None
    assert filled.unload is not None
    assert (filled.load.path, filled.load.body) == ("/load/1", {"gpu": 1})
    assert filled.unload.headers == {"X-GPU": "1"}
    assert filled.systemd_unit == "llm@1.service"
    assert filled.container == "llm-1"
    assert filled.command == ("serve", "--main-gpu=1", "{{ prompt }}")
    assert filled.environment == {"CUDA_VISIBLE_DEVICES": "GPU-b", "X": "{y}"}
    assert gpu_placeholders.fill_consumer(config, TWO).container == "llm-0-1"
    assert gpu_placeholders.are_in(config)
    assert not gpu_placeholders.are_in(filled)


INDEX, UUID = "did you mean gpu_index?", "did you mean gpu_uuid?"
NAMES = "known placeholders: gpu_index, gpu_uuid"


@pytest.mark.parametrize(
    ("key", "where", "name", "hint"),
    [
        ("load: {path: '/{gpu_indx}'}", "load.path", "gpu_indx", INDEX),
        ("load: {path: '/{model}'}", "load.path", "model", NAMES),
        ("load: {path: /l, headers: {X: '{gpu_uid}'}}", "load.headers.X", "gpu_uid", UUID),
        ("load: {path: /l, body: {a: ['{gpu}']}}", "load.body", "gpu", NAMES),
        ("unload: {path: /u, body: 'on {gpu_idx}'}", "unload.body", "gpu_idx", INDEX),
        ("systemd_unit: 'llm@{gpuindex}.service'", "systemd_unit", "gpuindex", INDEX),
        ("container: 'llm-{gpuindex}'", "container", "gpuindex", INDEX),
        ("command: [serve, '{gpu}']", "command", "gpu", NAMES),
        ("command: [serve], environment: {G: '{gpu_uid}'}", "environment.G", "gpu_uid", UUID),
    ],
)  # fmt: skip
def test_a_name_that_stands_for_nothing_is_an_error(
    problems: Problems, key: str, where: str, name: str, hint: str
) -> None:
    text = f"consumers: {{tts: {{url: 'http://127.0.0.1:1', {key}}}}}"
    assert problems(text) == [f"1: consumers.tts.{where}: {{{name}}} stands for nothing; {hint}"]


def test_nothing_is_filled_in_where_a_consumer_is_asked_how_it_is(problems: Problems) -> None:
    text = "consumers: {tts: {url: 'http://127.0.0.1:1', health: {path: '/h/{gpu_index}'}}}"
    (problem,) = problems(text)
    assert problem.endswith(
        "a placeholder can stand only in load, unload, and what starts a consumer"
    )


def test_a_template_with_a_placeholder_for_its_instance_is_a_units_name(loaded: Load) -> None:
    text = "consumers: {tts: {url: 'http://127.0.0.1:1', systemd_unit: 'llm@{gpu_uuid}.service'}}"
    assert loaded(text).consumers["tts"].systemd_unit == "llm@{gpu_uuid}.service"
