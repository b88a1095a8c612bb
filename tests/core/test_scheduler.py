from __future__ import annotations

import pytest

from mgpu.core.effects import Effect, Sample
from mgpu.core.events import Timer, TimerFired, TimerKind
from mgpu.core.model import ConsumerState, Policy
from mgpu.core.scheduler import Scheduler
from tests.core.playbook import Playbook, absent, resident, unknown


def test_it_starts_with_what_the_policy_guesses() -> None:
    play = Playbook(
        resident("a"), absent("b"), unknown("c"), unknown("own", vram_managed=True), blind=True
    )
    assert play.states() == {"a": "resident", "b": "absent", "c": "unknown", "own": "resident"}


def test_tokens_go_on_from_where_they_are_told_to() -> None:
    policy = Policy(consumers={"a": resident("a")})
    assert Scheduler(policy, first_token=1000).state.next_token == 1000


def test_the_same_events_give_the_same_effects() -> None:
    def story() -> list[Effect]:
        play = Playbook(resident("a"), absent("b"), total_mib=8000)
        play.arrive("1", "b")
        effects = play.effects
        play.arrive("2", "a")
        effects += play.effects
        play.unloaded("a")
        effects += play.effects
        play.memory(8000)
        return effects + play.effects

    assert story() == story()


def test_it_samples_fast_for_as_long_as_memory_is_expected_to_change() -> None:
    play = Playbook(resident("a"), absent("b"), total_mib=8000)
    play.arrive("1", "b")
    assert play.facts(Sample) == [Sample(fast=True)]
    play.unloaded("a")
    assert play.facts(Sample) == [Sample(fast=True)]
    play.memory(8000)
    assert play.facts(Sample) == []
    play.loaded("b")
    assert play.facts(Sample) == [Sample(fast=False)]


# Shutting down


def test_draining_refuses_everybody_who_waits_or_comes_and_lets_the_running_end() -> None:
    play = Playbook(resident("a"), absent("b"))
    play.arrive("1", "a")
    play.arrive("2", "a")
    play.arrive("3", "b")
    assert play.drain() == ["rejected 2: draining", "rejected 3: draining"]
    assert play.arrive("4", "a") == ["rejected 4: draining"]
    assert play.end("1") == ["done 1"]


def test_draining_finishes_the_load_under_way_and_starts_nothing_more() -> None:
    play = Playbook(absent("a"), resident("b"), absent("c"), total_mib=16000)
    play.arrive("1", "a")
    play.drain()
    assert play.comes("a") == []
    assert play.states()["a"] == "resident"


def test_draining_gives_up_a_swap() -> None:
    play = Playbook(resident("a"), absent("b"), total_mib=8000)
    play.arrive("1", "b")
    assert play.drain() == ["rejected 1: draining"]
    assert play.leaves("a") == []
    assert play.state.swaps == {}


# Reminders that come too late, or for something else


@pytest.mark.parametrize("kind", [TimerKind.WAIT, TimerKind.RUN])
def test_a_reminder_of_a_job_that_has_ended_changes_nothing(kind: TimerKind) -> None:
    play = Playbook(resident("a"))
    play.arrive("1", "a")
    play.end("1")
    assert play.handle(TimerFired(play.now, Timer(kind, "1"))) == []


def test_a_reminder_to_wait_no_longer_comes_too_late_for_a_running_job() -> None:
    play = Playbook(resident("a"))
    play.arrive("1", "a")
    assert play.handle(TimerFired(play.now, Timer(TimerKind.WAIT, "1"))) == []


@pytest.mark.parametrize("kind", [TimerKind.SETTLE, TimerKind.COOLDOWN, TimerKind.QUARANTINE])
def test_a_reminder_for_a_state_that_is_over_changes_nothing(kind: TimerKind) -> None:
    play = Playbook(resident("a"))
    for attempt in (play["a"].attempt, -1):
        assert play.handle(TimerFired(play.now, Timer(kind, "a", attempt))) == []
    assert play.states() == {"a": "resident"}


def test_ended_jobs_leave_no_timers() -> None:
    play = Playbook(resident("a"), absent("b"), total_mib=8000)
    play.arrive("1", "a")
    play.arrive("2", "b")
    play.arrive("3", "a")
    play.leave("3")
    play.end("1")
    play.leaves("a")
    play.comes("b")
    play.end("2")
    assert play.timers == {}


def test_states_are_named_as_a_client_sees_them() -> None:
    assert [str(state) for state in ConsumerState] == [
        "unknown",
        "absent",
        "loading",
        "resident",
        "draining",
        "unloading",
        "cooldown",
        "quarantined",
    ]
