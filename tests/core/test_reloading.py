"""Other rules while everything runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mgpu.core.effects import Forget
from mgpu.core.events import PolicyChanged, Timer, TimerFired, TimerKind
from mgpu.core.model import ConsumerPolicy, Outcome
from tests.core.playbook import Playbook, absent, resident, unknown


def change(play: Playbook, *consumers: ConsumerPolicy, **rules: Any) -> list[str]:
    """These consumers and no others, and rules that are different."""
    policy = replace(play.state.policy, consumers={c.name: c for c in consumers}, **rules)
    return play.handle(PolicyChanged(play.now, policy))


def forgotten(play: Playbook) -> list[str]:
    return [effect.consumer for effect in play.effects if isinstance(effect, Forget)]


class TestLimits:
    def test_hold_from_now_on(self) -> None:
        play = Playbook(resident("a"), absent("b"))
        change(play, resident("a"), absent("b"), max_resident=1)
        assert play.arrive("1", "b") == ["unload a"]

    def test_let_those_who_run_and_wait_live_on(self) -> None:
        play = Playbook(resident("a", concurrency=2))
        for job in "1234":
            play.arrive(job, "a")
        assert change(play, resident("a", concurrency=1, max_queue=1), max_queue=1) == []
        assert play.arrive("5", "a") == ["rejected 5: queue-full"]
        assert play.end("1") == ["done 1"]
        assert play.end("2") == ["done 2", "grant 3"]
        assert play.end("3") == ["done 3", "grant 4"]
        assert play.arrive("6", "a") == []

    def test_that_are_wider_serve_at_once(self) -> None:
        play = Playbook(resident("a"))
        play.arrive("1", "a")
        play.arrive("2", "a")
        assert change(play, resident("a", concurrency=2)) == ["grant 2"]

    def test_of_a_footprint_count_for_the_next_load(self) -> None:
        play = Playbook(resident("a"), absent("b", 4000), total_mib=14000)
        change(play, resident("a"), absent("b", 8000))
        assert play.arrive("1", "b") == ["unload a"]

    def test_of_coexistence_spare_from_now_on(self) -> None:
        play = Playbook(resident("a"), resident("c"), absent("b"), total_mib=16000)
        change(play, resident("a"), resident("c"), absent("b", can_coexist_with=frozenset({"a"})))
        assert play.arrive("1", "b") == ["unload c"]

    def test_of_idle_time_start_anew(self) -> None:
        play = Playbook(resident("a", idle_unload_s=10.0))
        play.use("a")
        play.after(5.0)
        change(play, resident("a", idle_unload_s=20.0))
        assert play.after(19.0) == []
        assert play.after(1.0) == ["unload a"]

    def test_that_end_hanging_jobs_hold_for_those_that_run_as_they_began(self) -> None:
        play = Playbook(resident("a", busy_timeout_s=10.0))
        play.arrive("1", "a")
        change(play, resident("a", busy_timeout_s=20.0))
        assert play.after(10.0)[0] == "abort 1: job-timeout"

    def test_that_end_hanging_jobs_can_be_taken_away(self) -> None:
        play = Playbook(resident("a", busy_timeout_s=10.0))
        play.arrive("1", "a")
        change(play, resident("a"))
        assert play.after(60.0) == []

    def test_leave_a_pin_by_hand_alone_unless_the_pin_itself_changes(self) -> None:
        play = Playbook(resident("a"))
        play.pin("a")
        change(play, resident("a", priority=1))
        assert play["a"].pinned
        change(play, resident("a", pinned=True))
        change(play, resident("a"))
        assert not play["a"].pinned


def test_a_new_consumer_is_taken_in_and_served() -> None:
    play = Playbook(resident("a"))
    change(play, unknown("b"), resident("a"))
    assert list(play.state.consumers) == ["b", "a"]
    assert play.arrive("1", "b") == []
    assert play.probe("b", reachable=False) == ["load b"]
    assert play.comes("b") == ["grant 1"]


class TestAConsumerThatIsTakenOut:
    def test_is_unloaded_when_idle_and_forgotten(self) -> None:
        play = Playbook(resident("a"), resident("b"))
        assert change(play, resident("b")) == ["unload a"]
        assert forgotten(play) == []
        play.leaves("a")
        assert forgotten(play) == ["a"]
        assert list(play.state.consumers) == ["b"]

    def test_lets_its_running_job_end_and_refuses_those_that_wait(self) -> None:
        play = Playbook(resident("a"), resident("b"))
        play.arrive("1", "a")
        play.arrive("2", "a")
        assert change(play, resident("b")) == ["rejected 2: unknown-consumer"]
        assert play.arrive("3", "a") == ["rejected 3: unknown-consumer"]
        assert play.end("1") == ["done 1", "unload a"]

    def test_is_forgotten_at_once_when_it_is_absent(self) -> None:
        play = Playbook(resident("b"), absent("a"))
        change(play, resident("b"))
        assert forgotten(play) == ["a"]

    def test_keeps_its_memory_when_nothing_can_unload_it(self) -> None:
        play = Playbook(resident("a", 5000, can_unload=False), resident("b"))
        assert change(play, resident("b")) == []
        assert forgotten(play) == ["a"]
        assert play.snapshot().gpus[0].foreign_mib == 5000

    def test_is_unloaded_when_its_load_is_over(self) -> None:
        play = Playbook(absent("a"), resident("b"))
        play.arrive("1", "a")
        assert change(play, resident("b")) == ["rejected 1: unknown-consumer"]
        assert play.comes("a") == ["unload a"]
        play.leaves("a")
        assert forgotten(play) == ["a"]

    def test_ends_a_swap_that_made_room_for_it(self) -> None:
        play = Playbook(absent("a"), resident("b"), total_mib=8000)
        assert play.arrive("1", "a") == ["unload b"]
        assert change(play, resident("b")) == ["rejected 1: unknown-consumer"]
        assert forgotten(play) == ["a"]
        play.leaves("b")
        assert play.arrive("2", "b") == ["load b"]

    def test_that_makes_room_for_another_does_so(self) -> None:
        play = Playbook(resident("a"), absent("b"), total_mib=8000)
        assert play.arrive("1", "b") == ["unload a"]
        assert change(play, absent("b")) == []
        assert play.leaves("a") == ["load b"]
        assert "a" not in play.state.consumers
        assert play.comes("b") == ["grant 1"]

    def test_that_cannot_be_unloaded_after_all_is_forgotten_and_who_waits_is_told(self) -> None:
        play = Playbook(resident("a"), resident("b"))
        play.unload_by_hand("a")
        change(play, resident("b"))
        assert play.unload_fails("a") == ["answer r: unload-failed"]
        assert forgotten(play) == ["a"]

    def test_is_the_same_as_before_when_it_comes_back_in_time(self) -> None:
        play = Playbook(resident("a"), resident("b"))
        play.arrive("1", "a")
        play.arrive("2", "a")
        change(play, resident("b"))
        change(play, resident("a"), resident("b"))
        assert play["a"].state == "draining"
        play.end("1")
        play.leaves("a")
        assert play.arrive("3", "a") == ["load a"]

    def test_whose_first_job_failed_keeps_no_room(self) -> None:
        play = Playbook(absent("a", can_load=False), absent("b", 20000))
        play.arrive("1", "a")
        play.end("1", Outcome.FAILED)
        change(play, absent("b", 20000))
        play.unloaded("a")
        play.after(10.0)
        assert "a" not in play.state.consumers
        assert play.arrive("2", "b") == ["load b"]

    def test_is_no_more_preloaded(self) -> None:
        play = Playbook(absent("a", pinned=True), resident("b"))
        play.after(1.0)
        (cancelled,) = change(play, resident("b"))  # while its load goes on
        assert cancelled.startswith("cancelled preload-a")
        assert play.comes("a") == ["unload a"]
        play.leaves("a")
        assert "a" not in play.state.consumers
        assert play.after(600.0) == []

    def test_is_nobody_to_ask_for_and_late_answers_change_nothing(self) -> None:
        play = Playbook(resident("b"), absent("a"))
        change(play, resident("b"))
        assert play.arrive("1", "a") == ["rejected 1: unknown-consumer"]
        assert play.unload_by_hand("a") == ["answer r: unknown-consumer"]
        assert play.restart("a", "s") == ["answer s: unknown-consumer"]
        assert play.probe("a", attempt=0) == []
        assert play.pin("a") == []
        for kind in (TimerKind.COOLDOWN, TimerKind.IDLE):
            assert play.handle(TimerFired(play.now, Timer(kind, "a", 0))) == []


@pytest.mark.parametrize("paused", [False, True])
def test_one_that_cools_down_is_forgotten(paused: bool) -> None:
    play = Playbook(absent("a"), resident("b"))
    play.arrive("1", "a")
    play.load_fails("a")
    play.load_fails("a")
    if paused:
        play.pause()
    change(play, resident("b"))
    assert forgotten(play) == ["a"]
    play.after(10.0)
