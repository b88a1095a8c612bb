from __future__ import annotations

import pytest

from mgpu.core.model import ConsumerState as S
from mgpu.core.state import HISTORY, Consumer
from mgpu.core.transitions import LEGAL, IllegalTransitionError, move
from tests.core.playbook import Playbook, absent, resident


def test_a_legal_move_is_made_and_remembered() -> None:
    consumer = Consumer(absent("tts"), S.ABSENT)
    assert move(consumer, S.LOADING, 1.5, "room made") is S.ABSENT
    assert consumer.state is S.LOADING
    assert list(consumer.history) == ["1.500 absent -> loading: room made"]


def test_an_illegal_move_raises_and_tells_the_story() -> None:
    consumer = Consumer(absent("tts"), S.ABSENT)
    move(consumer, S.LOADING, 1.0, "room made")
    move(consumer, S.RESIDENT, 2.0, "loaded")
    with pytest.raises(IllegalTransitionError) as raised:
        move(consumer, S.LOADING, 3.0, "again")
    assert str(raised.value) == (
        "tts: resident -> loading (again) at 3.000; before that:\n"
        "  1.000 absent -> loading: room made\n"
        "  2.000 loading -> resident: loaded"
    )
    assert consumer.state is S.RESIDENT


def test_every_state_can_be_left_and_come_to() -> None:
    assert LEGAL.keys() == set(S)
    assert all(LEGAL.values())
    assert set().union(*LEGAL.values()) == set(S) - {S.UNKNOWN}


def test_only_who_was_not_asked_to_leave_comes_back_to_resident() -> None:
    assert S.RESIDENT not in LEGAL[S.DRAINING] | LEGAL[S.QUARANTINED]
    play = Playbook(resident("a"), absent("b", footprint_mib=20000))
    play.arrive("1", "b")
    play.probe("a", resident=True)
    assert play.states()["a"] == "unloading"
    play.declines("a")
    assert play.states()["a"] == "resident"


def test_a_story_is_bounded() -> None:
    consumer = Consumer(absent("tts"), S.ABSENT)
    for _ in range(HISTORY):
        move(consumer, S.LOADING, 0.0, "")
        move(consumer, S.ABSENT, 0.0, "")
    assert len(consumer.history) == HISTORY
