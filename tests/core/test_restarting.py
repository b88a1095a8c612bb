"""Stopping a consumer at its work: one that hangs in a job, or that a person wants afresh."""

from __future__ import annotations

from typing import Any

import pytest

from mgpu.core.effects import LockReleased
from tests.core.playbook import Playbook, absent, resident, unknown

HANGS: dict[str, Any] = {"busy_timeout_s": 60.0}


class TestTheBusyTimeout:
    def test_ends_the_job_and_stops_its_consumer(self) -> None:
        play = Playbook(resident("a", **HANGS))
        play.arrive("1", "a")
        assert play.after(59.0) == []
        assert play.after(1.0) == ["abort 1: job-timeout", "failed 1: job-timeout", "unload a"]
        assert play.leaves("a") == []
        assert play.states() == {"a": "absent"}
        assert not play.timers

    def test_takes_the_hardest_way_there_is(self) -> None:
        play = Playbook(resident("a", can_escalate=True, **HANGS))
        play.arrive("1", "a")
        assert play.after(60.0)[-1] == "stop a"
        assert play.unload_fails("a") == []
        assert play.states() == {"a": "quarantined"}

    def test_is_not_for_jobs_that_end_in_time(self) -> None:
        play = Playbook(resident("a", **HANGS))
        play.arrive("1", "a")
        play.after(59.0)
        assert play.end("1") == ["done 1"]
        assert not play.timers

    def test_loads_again_for_those_who_wait(self) -> None:
        play = Playbook(resident("a", **HANGS))
        play.arrive("1", "a")
        play.arrive("2", "a")
        play.after(60.0)
        assert play.leaves("a") == ["load a"]
        assert play.comes("a") == ["grant 2"]

    def test_ends_the_jobs_beside_it_for_what_they_are(self) -> None:
        play = Playbook(resident("a", concurrency=2, **HANGS))
        play.arrive("1", "a")
        play.after(30.0)
        play.arrive("2", "a")
        assert play.after(30.0) == [
            "abort 1: job-timeout",
            "failed 1: job-timeout",
            "abort 2: consumer-failed",
            "failed 2: consumer-failed",
            "unload a",
        ]

    def test_keeps_the_lock_until_the_consumer_has_answered(self) -> None:
        play = Playbook(resident("a", **HANGS), resident("b"))
        play.arrive("1", "a")
        play.arrive("2", "b")
        play.after(60.0)
        assert play.snapshot().gpus[0].lock_consumer == "a"
        assert play.unloaded("a") == ["grant 2"]
        assert [fact.consumer for fact in play.facts(LockReleased)] == ["a"]

    def test_lets_go_of_the_lock_when_the_consumer_cannot_be_stopped(self) -> None:
        play = Playbook(resident("a", **HANGS), resident("b"))
        play.arrive("1", "a")
        play.arrive("2", "b")
        play.after(60.0)
        assert play.unload_fails("a") == ["grant 2"]

    def test_does_not_wait_for_whoever_held_the_lease(self) -> None:
        play = Playbook(resident("a", **HANGS), resident("b"))
        play.arrive("1", "a")
        play.after(60.0)
        play.leaves("a")
        assert play.arrive("2", "b") == ["grant 2"]
        assert play.end("1") == []
        assert play.state.jobs.keys() == {"2"}

    def test_finds_a_client_that_has_left_and_is_not_let_go_of(self) -> None:
        play = Playbook(resident("a", **HANGS))
        play.arrive("1", "a")
        play.leave("1")
        assert play.after(60.0) == ["cancelled 1: client-left", "unload a"]

    def test_only_ends_the_job_of_one_that_cannot_be_unloaded(self) -> None:
        play = Playbook(resident("a", vram_managed=True, **HANGS))
        play.arrive("1", "a")
        assert play.after(60.0) == ["abort 1: job-timeout"]
        assert play.states() == {"a": "resident"}

    def test_answers_a_person_who_wanted_it_unloaded(self) -> None:
        play = Playbook(resident("a", **HANGS))
        play.arrive("1", "a")
        assert play.unload_by_hand("a") == []
        assert play.after(60.0)[-1] == "unload a"
        assert play.leaves("a") == ["answer r"]


class TestAPersonsRestart:
    def test_stops_a_consumer_and_its_jobs(self) -> None:
        play = Playbook(resident("a", can_escalate=True))
        play.arrive("1", "a")
        assert play.restart("a") == [
            "abort 1: consumer-failed",
            "failed 1: consumer-failed",
            "stop a",
        ]
        assert play.leaves("a") == ["answer r"]

    @pytest.mark.parametrize("policy", [{"can_unload": False}, {"vram_managed": True}])
    def test_is_refused_where_there_is_no_way(self, policy: dict[str, bool]) -> None:
        play = Playbook(resident("a", **policy))
        assert play.restart("a") == ["answer r: bad-request"]

    def test_stops_one_that_nobody_knows_yet(self) -> None:
        play = Playbook(unknown("a"))
        assert play.restart("a") == ["unload a"]

    def test_does_not_wait_for_running_jobs_as_an_unload_does(self) -> None:
        play = Playbook(resident("a"))
        play.arrive("1", "a")
        play.unload_by_hand("a", "u")
        assert play.restart("a")[-1] == "unload a"
        assert play.leaves("a") == ["answer u", "answer r"]

    def test_of_an_absent_one_has_nothing_to_stop(self) -> None:
        play = Playbook(absent("a"))
        assert play.restart("a") == ["answer r"]

    def test_ends_a_cooldown(self) -> None:
        play = Playbook(absent("a"))
        play.arrive("1", "a")
        play.load_fails("a")
        play.load_fails("a")
        assert play.states() == {"a": "cooldown"}
        assert play.restart("a") == ["answer r"]
        assert play.arrive("2", "a") == ["load a"]
        assert not [timer for timer in play.timers if timer.kind == "cooldown"]

    def test_tries_one_in_quarantine_again(self) -> None:
        play = Playbook(resident("a"))
        play.unload_by_hand("a", "u")
        play.unload_fails("a")
        assert play.states() == {"a": "quarantined"}
        assert play.restart("a") == ["unload a"]
        assert play.leaves("a") == ["answer r"]

    def test_of_one_that_is_loading_comes_after_the_load(self) -> None:
        play = Playbook(absent("a"))
        play.arrive("1", "a")
        assert play.restart("a") == []
        play.leave("1")
        assert play.comes("a") == ["unload a"]
        assert play.leaves("a") == ["answer r"]

    def test_of_one_that_is_leaving_is_over_when_it_has_left(self) -> None:
        play = Playbook(resident("a"))
        play.unload_by_hand("a", "u")
        assert play.restart("a") == []
        assert play.leaves("a") == ["answer u", "answer r"]
