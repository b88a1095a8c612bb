"""When somebody who is not used leaves by itself."""

from __future__ import annotations

import math

import pytest

from mgpu.core.effects import Sample
from tests.core.playbook import Playbook, absent, resident


def test_after_its_last_job_a_consumer_stays_for_as_long_as_it_may() -> None:
    play = Playbook(resident("a", idle_unload_s=30.0))
    play.use("a")
    assert play.after(29.0) == []
    assert play.after(1.0) == ["unload a"]
    assert play.leaves("a") == []
    assert play.states() == {"a": "absent"}
    assert not play.timers


def test_one_without_a_limit_stays() -> None:
    play = Playbook(resident("a"))
    play.use("a")
    assert play.after(1e6) == []
    assert play.states() == {"a": "resident"}


def test_the_clock_starts_when_the_last_of_several_jobs_has_ended() -> None:
    play = Playbook(resident("a", idle_unload_s=10.0, concurrency=2))
    play.arrive("1", "a")
    play.arrive("2", "a")
    play.end("1")
    assert play.after(60.0) == []
    play.end("2")
    assert play.after(9.0) == []
    assert play.after(1.0) == ["unload a"]


def test_new_work_stops_the_clock() -> None:
    play = Playbook(resident("a", idle_unload_s=10.0))
    play.use("a")
    play.after(9.0)
    assert play.arrive("1", "a") == ["grant 1"]
    assert play.after(60.0) == []
    play.end("1")
    assert play.after(10.0) == ["unload a"]


def test_zero_is_as_soon_as_it_is_idle() -> None:
    play = Playbook(absent("a", idle_unload_s=0.0))
    play.arrive("1", "a")
    play.arrive("2", "a")
    assert play.comes("a") == ["grant 1"]
    assert play.end("1") == ["done 1", "grant 2"]
    assert play.end("2") == ["done 2", "unload a"]
    assert not play.timers


def test_one_that_was_loaded_without_a_job_is_idle_from_then_on() -> None:
    play = Playbook(absent("a", idle_unload_s=10.0))
    play.load("1", "a")
    assert play.comes("a") == ["done 1"]
    assert play.after(10.0) == ["unload a"]


def test_one_that_waits_for_the_lock_is_not_idle() -> None:
    play = Playbook(resident("a", idle_unload_s=1.0), resident("b"))
    play.use("a")
    play.arrive("1", "b")
    assert play.arrive("2", "a") == []
    assert play.after(60.0) == []
    assert play.end("1") == ["done 1", "grant 2"]


def test_who_comes_after_the_decision_waits_for_the_next_load() -> None:
    play = Playbook(resident("a", idle_unload_s=1.0))
    play.use("a")
    assert play.after(1.0) == ["unload a"]
    assert play.arrive("1", "a") == []
    assert play.leaves("a") == ["load a"]
    assert play.comes("a") == ["grant 1"]


def test_an_event_loop_that_fires_a_little_early_is_believed() -> None:
    play = Playbook(resident("a", idle_unload_s=1.0))
    play.use("a")
    assert play.after(0.9985) == []
    assert play.memory(play.gpus[0].free_mib) == ["unload a"]


def test_a_pinned_one_stays_until_it_is_unpinned() -> None:
    play = Playbook(resident("a", idle_unload_s=1.0, pinned=True))
    play.use("a")
    assert play.after(60.0) == []
    play.pin("a", pinned=False)
    assert play.after(0.9) == []
    assert play.after(0.1) == ["unload a"]


def test_pinning_stops_the_clock() -> None:
    play = Playbook(resident("a", idle_unload_s=1.0))
    play.use("a")
    play.pin("a")
    assert play.after(60.0) == []


@pytest.mark.parametrize("policy", [{"can_unload": False}, {"vram_managed": True}])
def test_one_that_cannot_be_unloaded_stays(policy: dict[str, bool]) -> None:
    play = Playbook(resident("a", idle_unload_s=0.0, **policy))
    play.use("a")
    assert play.after(60.0) == []


def test_nobody_is_unloaded_while_the_broker_shuts_down() -> None:
    play = Playbook(resident("a", idle_unload_s=1.0))
    play.use("a")
    play.drain()
    assert play.after(60.0) == []


def test_what_it_gives_back_is_judged_by_figures_of_the_moment() -> None:
    play = Playbook(resident("a", idle_unload_s=10.0), stale=True)
    play.use("a")
    assert play.after(10.0) == []
    assert play.facts(Sample)
    assert play.memory(16576) == ["unload a"]


def test_one_that_no_job_has_loaded_yet_is_not_expected_to_give_memory_back() -> None:
    play = Playbook(absent("a", can_load=False, idle_unload_s=10.0))
    assert play.load("1", "a") == ["done 1"]
    assert play.after(10.0) == ["unload a"]
    assert play.unloaded("a") == []
    assert play.after(5.0) == []
    assert play.states() == {"a": "absent"}
    assert not play.timers


class TestAJobsWish:
    def test_counts_instead_of_the_policy(self) -> None:
        play = Playbook(resident("a"))
        play.arrive("1", "a", idle_unload_s=5.0)
        play.end("1")
        assert play.after(5.0) == ["unload a"]

    def test_may_be_for_ever(self) -> None:
        play = Playbook(resident("a", idle_unload_s=1.0))
        play.arrive("1", "a", idle_unload_s=math.inf)
        play.end("1")
        assert play.after(1e6) == []

    def test_is_that_of_the_job_which_ended_last(self) -> None:
        play = Playbook(resident("a", concurrency=2))
        play.arrive("1", "a", idle_unload_s=50.0)
        play.arrive("2", "a", idle_unload_s=5.0)
        play.end("2")
        play.end("1")
        assert play.after(49.0) == []
        assert play.after(1.0) == ["unload a"]

    def test_stands_until_the_next_job_has_ended(self) -> None:
        play = Playbook(resident("a", idle_unload_s=100.0))
        play.arrive("1", "a", idle_unload_s=5.0)
        play.end("1")
        play.use("a")
        assert play.after(99.0) == []
        assert play.after(1.0) == ["unload a"]

    def test_outlasts_a_job_that_only_waited(self) -> None:
        play = Playbook(resident("a"), resident("b"))
        play.arrive("1", "a", idle_unload_s=5.0)
        play.end("1")
        play.arrive("2", "b")
        play.arrive("3", "a", idle_unload_s=math.inf)
        play.leave("3")
        assert play.after(5.0) == ["unload a"]
