"""What tells one load from another."""

from __future__ import annotations

from typing import Any

import pytest

from mgpu.config.model import ConsumerConfig
from mgpu.config.residency import load_body, load_key

BODY = {"model": "chat", "options": {"ctx": 4096, "slots": 2}}
LOAD = {"path": "/load", "body": BODY}


def consumer(**keys: Any) -> ConsumerConfig:
    base = {"url": "http://h:1", "load": LOAD, "unload": {"path": "/unload"}}
    return ConsumerConfig.model_validate(base | keys)


@pytest.mark.parametrize(
    ("change", "another"),
    [
        ({"path": "/other"}, True),
        ({"method": "PUT"}, True),
        ({"port": 9}, True),
        ({"body": {"model": "other"}}, True),
        ({"body": {"options": {"slots": 2, "ctx": 4096}, "model": "chat"}}, False),
        ({"timeout_s": 5}, False),
        ({"ok": [200]}, False),
        ({"when": "done"}, False),
        ({"headers": {"Authorization": "Bearer k"}}, False),
    ],
)
def test_another_request_is_another_load(change: dict[str, Any], another: bool) -> None:
    assert (load_key(consumer(load=LOAD | change)) != load_key(consumer())) is another


def test_one_without_a_load_request_has_no_key() -> None:
    assert load_key(consumer(load=None, systemd_unit="tts.service")) == ""


@pytest.mark.parametrize(
    ("options", "body"),
    [
        ({}, BODY),
        ({"options": {"ctx": 1}}, {"model": "chat", "options": {"ctx": 1, "slots": 2}}),
        ({"model": None, "voice": "x"}, {"options": BODY["options"], "voice": "x"}),
        ({"options": None, "nothing": None}, {"model": "chat"}),
        ({"options": [1]}, {"model": "chat", "options": [1]}),
        ({"model": {"name": "a", "b": None}}, {"model": {"name": "a"}, "options": BODY["options"]}),
    ],
)
def test_options_are_merged_over_the_body_as_a_json_merge_patch(
    options: dict[str, Any], body: dict[str, Any]
) -> None:
    assert load_body(load_key(consumer(), options)) == body


def test_options_are_the_whole_body_where_none_is_configured() -> None:
    key = load_key(consumer(load={"path": "/load"}), {"ctx": 1})
    assert load_body(key) == {"ctx": 1}


def test_options_that_say_what_is_configured_are_no_others() -> None:
    assert load_key(consumer(), {"options": {"ctx": 4096}}) == load_key(consumer())


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"vram_managed": True}, "it loads by itself (vram_managed)"),
        ({"load": None}, "it has no load request to send them with"),
        ({"unload": None}, "it cannot be unloaded, so it could not be loaded anew"),
        (
            {"load": {"path": "/load", "method": "GET"}},
            "its load request is a GET, which has no body",
        ),
        (
            {"load": {"path": "/load", "body": [1]}},
            "its load.body is no object that they could be merged over",
        ),
    ],
)
def test_some_consumers_take_no_options(keys: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=r"^it") as raised:
        load_key(consumer(**keys), {"ctx": 1})
    assert str(raised.value) == why


def test_one_whose_unit_is_stopped_takes_them() -> None:
    assert load_key(consumer(unload=None, systemd_unit="tts.service"), {"ctx": 1})


def test_options_may_be_nested_only_so_deep() -> None:
    deep: Any = 1
    for _ in range(49):
        deep = [deep]
    load_key(consumer(), {"a": deep})
    with pytest.raises(ValueError, match="deep"):
        load_key(consumer(), {"a": [deep]})


def test_what_json_has_no_word_for_cannot_be_sent() -> None:
    with pytest.raises(ValueError, match="JSON"):
        load_key(consumer(), {"ctx": float("inf")})
