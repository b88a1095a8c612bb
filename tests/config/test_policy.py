from typing import Any

import pytest

from mgpu.config.model import Config
from mgpu.config.policy import policy
from mgpu.core.model import (
    ConsumerPolicy,
    ConsumerState,
    LockMode,
    NothingToEvict,
    Order,
    Policy,
)

LOAD = {"load": {"path": "/load"}}
UNLOAD = {"unload": {"path": "/unload"}}
UNLOAD_ONCE = {"unload": {"path": "/unload", "repeatable": False}}
UNIT = {"systemd_unit": "tts.service"}
PROBE = {"resident": {"path": "/status", "when": "loaded"}}
MANAGED = {"vram_managed": True}


def _consumer(**keys: Any) -> ConsumerPolicy:
    config = Config.model_validate({"consumers": {"tts": {"url": "http://h:1", **keys}}})
    return policy(config).consumers["tts"]


def test_defaults_are_those_of_the_core() -> None:
    assert policy(Config()) == Policy(consumers={})


def test_every_rule_is_handed_on() -> None:
    config = Config.model_validate(
        {
            "gpu": {"cushion_mib": 1, "lock": "shared", "settle_timeout_s": 2},
            "scheduler": {
                "order": "arrival",
                "max_queue": 3,
                "max_wait_s": 4,
                "max_overtake_s": 5,
                "min_resident_s": 6,
                "max_resident": 7,
                "restore_when_idle": True,
                "when_nothing_to_evict": "attempt",
            },
        }
    )

    assert policy(config) == Policy(
        consumers={},
        cushion_mib=1,
        lock=LockMode.SHARED,
        settle_timeout_s=2,
        order=Order.ARRIVAL,
        max_queue=3,
        max_wait_s=4,
        max_overtake_s=5,
        min_resident_s=6,
        max_resident=7,
        restore_when_idle=True,
        when_nothing_to_evict=NothingToEvict.ATTEMPT,
    )


def test_everything_of_a_consumer_is_handed_on() -> None:
    consumer = _consumer(
        gpus=[1, 0],
        footprint_mib=2400,
        residual_mib=300,
        can_coexist_with=["stt", "*"],
        concurrency=2,
        max_queue=3,
        priority=4,
        pinned=True,
        idle_unload_s=0,
        initially="absent",
        job_timeout_s=5,
        busy_timeout_s=4,
        **LOAD,
        **UNLOAD,
        **UNIT,
    )

    assert consumer == ConsumerPolicy(
        name="tts",
        gpus=(1, 0),
        footprint_mib=2400,
        residual_mib=300,
        can_coexist_with=frozenset({"stt", "*"}),
        concurrency=2,
        max_queue=3,
        priority=4,
        pinned=True,
        idle_unload_s=0.0,
        initially=ConsumerState.ABSENT,
        job_timeout_s=5,
        busy_timeout_s=4.0,
        load_key='{"body": null, "method": "POST", "path": "/load", "port": null}',
        can_load=True,
        can_unload=True,
        can_escalate=True,
    )


@pytest.mark.parametrize(
    ("keys", "load_unload_escalate"),
    [
        ({}, (False, False, False)),
        (LOAD, (True, False, False)),
        (UNLOAD, (False, True, False)),
        (LOAD | UNLOAD, (True, True, False)),
        (UNIT, (True, True, False)),
        (LOAD | UNIT, (True, True, False)),
        (UNLOAD | UNIT, (True, True, True)),
        ({"container": "tts"}, (True, True, False)),
        (UNLOAD | {"command": "tts"}, (True, True, True)),
        (MANAGED | LOAD | UNLOAD | UNIT, (False, False, False)),
    ],
)
def test_a_way_exists_by_endpoint_or_unit_and_escalation_by_both(
    keys: dict[str, Any], load_unload_escalate: tuple[bool, bool, bool]
) -> None:
    consumer = _consumer(**keys)

    assert (
        consumer.can_load,
        consumer.can_unload,
        consumer.can_escalate,
    ) == load_unload_escalate


@pytest.mark.parametrize(
    ("keys", "state"),
    [
        (PROBE | LOAD | UNLOAD, ConsumerState.UNKNOWN),
        (PROBE | MANAGED, ConsumerState.UNKNOWN),
        (MANAGED, ConsumerState.RESIDENT),
        (MANAGED | UNLOAD, ConsumerState.RESIDENT),
        (UNLOAD, ConsumerState.ABSENT),
        (LOAD | UNLOAD, ConsumerState.RESIDENT),
        (LOAD | UNLOAD_ONCE, ConsumerState.UNKNOWN),
        (MANAGED | UNLOAD_ONCE, ConsumerState.RESIDENT),
        (UNLOAD | UNIT, ConsumerState.UNKNOWN),
        (MANAGED | UNLOAD | UNIT, ConsumerState.RESIDENT),
        (UNIT, ConsumerState.UNKNOWN),
        ({"container": "tts"}, ConsumerState.UNKNOWN),
        (UNLOAD | {"command": "tts"}, ConsumerState.ABSENT),
        (LOAD | UNIT, ConsumerState.UNKNOWN),
        (LOAD, ConsumerState.RESIDENT),
        ({}, ConsumerState.RESIDENT),
        (PROBE | {"initially": "resident"}, ConsumerState.RESIDENT),
        (LOAD | UNLOAD | {"initially": "absent"}, ConsumerState.ABSENT),
    ],
)
def test_the_first_guess_follows_the_ways_of_control(
    keys: dict[str, Any], state: ConsumerState
) -> None:
    assert _consumer(**keys).initially is state


@pytest.mark.parametrize(
    ("keys", "tells"),
    [
        (LOAD | UNLOAD, False),
        (PROBE | LOAD | UNLOAD, True),
        (UNIT, True),
        (UNLOAD | UNIT, False),
        (LOAD | UNLOAD_ONCE, True),
    ],
)
def test_who_is_asked_is_their_own_start_or_must_be_remembered_tells_what_it_holds(
    keys: dict[str, Any], tells: bool
) -> None:
    assert _consumer(**keys).tells_residency is tells


def test_consumers_keep_the_order_of_the_file() -> None:
    keys = {"url": "http://h:1"}
    config = Config.model_validate({"consumers": {"z": keys, "a": keys}})

    assert list(policy(config).consumers) == ["z", "a"]
