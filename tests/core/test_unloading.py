from __future__ import annotations

import pytest

from mgpu.core.effects import Sample, SettleTimedOut, StartUnload, UnloadMeasured
from mgpu.core.events import GpusRead
from mgpu.core.unloading import backoff_s
from tests.core.playbook import Playbook, absent, resident, unknown

# Settling


def test_an_unload_is_over_when_most_of_the_memory_shows_as_free() -> None:
    play = Playbook(resident("a", 10000))
    assert play.unload_by_hand("a") == ["unload a"]
    assert play.unloaded("a") == []
    assert play.memory(14576 + 7999) == []
    play.after(2.0)
    assert play.memory(14576 + 8000) == ["answer r"]
    assert play.states()["a"] == "absent"
    assert play.facts(UnloadMeasured) == [UnloadMeasured("a", ok=True, seconds=2.0)]


def test_a_residual_is_not_waited_for_and_stays_on_the_books() -> None:
    play = Playbook(resident("a", 10000, residual_mib=2000), absent("b", 24576 - 1999))
    play.unload_by_hand("a")
    play.unloaded("a")
    assert play.memory(14576 + 6399) == []
    assert play.memory(14576 + 6400) == ["answer r"]
    play.memory(22577)
    assert play.arrive("1", "b") == ["rejected 1: vram-unavailable"]


def test_a_consumer_that_holds_nothing_by_the_books_is_gone_when_it_says_so() -> None:
    play = Playbook(resident("a", 0))
    play.unload_by_hand("a")
    assert play.unloaded("a") == ["answer r"]


def test_when_time_is_up_half_of_it_is_enough_and_the_rest_is_billed() -> None:
    play = Playbook(resident("a", 10000), absent("b", 20001))
    play.unload_by_hand("a")
    play.unloaded("a")
    play.memory(14576 + 6000)
    assert play.after(5.0) == ["answer r"]
    assert play["a"].leftover_mib == 4000
    assert play.facts(SettleTimedOut) == [SettleTimedOut("a", 4000)]


def test_a_leftover_is_written_off_when_the_gpu_does_not_bear_it_out() -> None:
    play = Playbook(resident("a", 10000), resident("b", 4000))
    play.unload_by_hand("a")
    play.unloaded("a")
    play.memory(10576 + 6000)
    play.after(5.0)
    play.memory(10576 + 7000)
    assert play["a"].leftover_mib == 3000
    play.memory(24576)
    assert play["a"].leftover_mib == 0


def test_less_than_half_is_a_failure() -> None:
    play = Playbook(resident("a", 10000))
    play.unload_by_hand("a")
    play.unloaded("a")
    play.memory(14576 + 4999)
    assert play.after(4.9) == []
    assert play.after(0.1) == ["answer r: unload-failed"]
    assert play.states()["a"] == "quarantined"
    assert play.facts(UnloadMeasured) == [UnloadMeasured("a", ok=False, seconds=5.0)]


# Escalation and quarantine


def test_an_unload_that_fails_is_tried_the_harder_way() -> None:
    play = Playbook(resident("a", can_escalate=True))
    play.unload_by_hand("a")
    assert play.unload_fails("a") == ["stop a"]
    assert play.facts(StartUnload)[0].escalate
    assert play.leaves("a") == ["answer r"]


def test_an_unload_that_frees_nothing_is_tried_the_harder_way() -> None:
    play = Playbook(resident("a", can_escalate=True), absent("b", 20000))
    assert play.arrive("1", "b") == ["unload a"]
    play.unloaded("a")
    assert play.after(5.0) == ["stop a"]
    assert play.memory(24576) == []
    assert play.unloaded("a") == ["load b"]


def test_when_the_harder_way_fails_too_it_is_quarantined_and_the_next_victim_taken() -> None:
    play = Playbook(resident("a", can_escalate=True), resident("b"), absent("new"), total_mib=16000)
    play.arrive("1", "new")
    assert play.unload_fails("a") == ["stop a"]
    assert play.unload_fails("a") == ["unload b"]
    assert play.states()["a"] == "quarantined"
    assert play.leaves("b") == ["load new"]


def test_a_quarantined_consumer_stays_on_the_books_and_takes_no_job() -> None:
    play = Playbook(resident("a"), absent("new"), total_mib=8000)
    play.unload_by_hand("a")
    play.unload_fails("a", "timed out")
    assert play.arrive("1", "a") == ["rejected 1: consumer-cooldown"]
    refusal = play.ended["1"].refusal
    assert refusal is not None
    assert refusal.detail == "a is left alone for 1.0 s: timed out"
    assert play.arrive("2", "new") == ["rejected 2: vram-unavailable"]


def test_jobs_that_waited_for_a_victim_are_refused_when_it_is_quarantined() -> None:
    play = Playbook(resident("a"), absent("new"), total_mib=8000)
    play.arrive("1", "new")
    play.arrive("2", "a")
    assert play.unload_fails("a") == [
        "rejected 1: vram-unavailable",
        "rejected 2: consumer-cooldown",
    ]


def test_one_that_never_accepted_is_asked_again_after_a_pause_that_doubles() -> None:
    play = Playbook(resident("a", can_escalate=True))
    play.unload_by_hand("a")
    for pause_s in (1.0, 2.0, 4.0):
        assert play.unload_fails("a") == ["stop a"]
        play.unload_fails("a")
        assert play.after(pause_s - 0.1) == []
        assert play.after(0.1) == ["unload a"]
    assert play.leaves("a") == []
    assert play.states()["a"] == "absent"
    assert play["a"].failures == 0


def test_one_that_accepted_and_kept_its_memory_may_load_again_on_top_of_it() -> None:
    play = Playbook(resident("a", 8000))
    play.unload_by_hand("a")
    play.unloaded("a")
    play.memory(18000)
    play.after(5.0)
    assert play.after(1.0) == []
    assert play.states()["a"] == "absent"
    assert play["a"].leftover_mib == 24576 - 18000
    assert play.arrive("1", "a") == ["load a"]
    assert play.comes("a") == ["grant 1"]
    assert play["a"].leftover_mib == 0


def test_memory_that_comes_back_at_last_ends_a_quarantine() -> None:
    play = Playbook(resident("a"))
    play.unload_by_hand("a")
    play.unload_fails("a")
    play.memory(24576)
    assert play.states()["a"] == "absent"
    assert play.after(10.0) == []


def test_memory_that_others_give_back_does_not_end_a_quarantine() -> None:
    play = Playbook(resident("a"), resident("b"), absent("new"), total_mib=16000)
    play.arrive("1", "new")
    assert play.unload_fails("a") == ["unload b"]
    assert play.leaves("b") == ["load new"]
    assert play.states()["a"] == "quarantined"


def test_the_pause_is_bounded() -> None:
    assert [backoff_s(n) for n in (1, 2, 9, 10, 10_000)] == [1.0, 2.0, 256.0, 300.0, 300.0]


def test_answers_to_an_unload_that_was_given_up_change_nothing() -> None:
    play = Playbook(resident("a", can_escalate=True))
    play.unload_by_hand("a")
    first = play.facts(StartUnload)[0].attempt
    play.unload_fails("a")
    assert play.unloaded("a", attempt=first) == []
    assert play["a"].unload is not None
    assert not play["a"].unload.answered
    play.unload_fails("a")
    assert play.unloaded("a") == []
    assert play.states()["a"] == "quarantined"


def test_a_reminder_of_an_unload_that_was_given_up_changes_nothing() -> None:
    play = Playbook(resident("a", can_escalate=True))
    play.unload_by_hand("a")
    play.unloaded("a")
    assert play.after(5.0) == ["stop a"]
    play.unloaded("a")
    assert play.after(4.9) == []
    assert play.after(0.1) == ["answer r: unload-failed"]


# Several at once, and disturbances


def test_two_that_leave_together_are_told_apart_by_neither_and_wait_for_both() -> None:
    play = Playbook(resident("a", 10000), resident("b", 2000))
    play.unload_by_hand("a", "ra")
    play.unload_by_hand("b", "rb")
    play.unloaded("a")
    play.unloaded("b")
    assert play.memory(12576 + 9000) == []
    assert play.memory(12576 + 10000) == ["answer ra", "answer rb"]


def test_one_that_joins_late_is_judged_by_what_is_its_own() -> None:
    play = Playbook(resident("a", 10000), resident("b", 10000))
    play.unload_by_hand("a", "ra")
    play.unloaded("a")
    play.memory(4576 + 5000)
    play.unload_by_hand("b", "rb")
    assert play.memory(4576 + 20000) == ["answer ra"]
    assert play.unloaded("b") == ["answer rb"]


def test_one_that_left_does_not_lend_its_memory_to_one_that_keeps_its_own() -> None:
    play = Playbook(resident("a", 10000), resident("b", 10000))
    play.unload_by_hand("a", "ra")
    play.unload_by_hand("b", "rb")
    play.unloaded("a")
    play.memory(4576 + 10000)
    assert play.after(5.0) == ["answer ra"]
    assert play.unloaded("b") == []
    assert play.after(5.0) == ["answer rb: unload-failed"]


def test_one_that_hangs_does_no_harm_to_one_that_left() -> None:
    play = Playbook(resident("a", 2000), resident("b", 20000))
    play.unload_by_hand("a", "ra")
    play.unload_by_hand("b", "rb")
    play.unloaded("a")
    play.memory(2576 + 2000)
    assert play.after(5.0) == ["answer ra"]
    assert play["a"].leftover_mib == 0
    assert play.states() == {"a": "absent", "b": "unloading"}


@pytest.mark.parametrize("loader", ["new", "image"])
def test_beside_a_load_an_unload_is_believed_when_its_time_is_up(loader: str) -> None:
    play = Playbook(absent("new", 10000), absent("image", 10000, can_load=False), resident("a"))
    play.arrive("1", loader)
    play.unload_by_hand("a")
    play.unloaded("a")
    assert play.memory(24576 - 10000) == []
    assert play.after(5.0) == ["answer r"]
    assert play.states()["a"] == "absent"
    assert play["a"].leftover_mib == 0


def test_while_a_gpu_does_not_answer_an_unload_is_believed_when_its_time_is_up() -> None:
    play = Playbook(resident("a"))
    play.unload_by_hand("a")
    play.unloaded("a")
    play.gpus_lost()
    assert play.after(5.0) == ["answer r"]
    assert play.states()["a"] == "absent"


def test_an_unload_begun_in_the_dark_is_believed_when_its_time_is_up() -> None:
    play = Playbook(resident("a"))
    play.gpus_lost()
    play.unload_by_hand("a")
    play.memory(10000)
    play.unloaded("a")
    assert play.after(5.0) == ["answer r"]


def test_a_gpu_that_answers_again_in_time_is_judged_by() -> None:
    play = Playbook(resident("a"))
    play.unload_by_hand("a")
    play.gpus_lost()
    play.unloaded("a")
    assert play.memory(24576) == ["answer r"]


def test_a_quarantine_that_others_disturbed_ends_with_everything_billed() -> None:
    play = Playbook(resident("a"), resident("b"))
    play.unload_by_hand("a")
    play.unloaded("a")
    play.after(5.0)
    play.unload_by_hand("b")
    play.leaves("b")
    play.after(1.0)
    assert play.states()["a"] == "absent"
    assert play["a"].leftover_mib == 8000


# By hand


def test_a_busy_consumer_is_drained_first() -> None:
    play = Playbook(resident("a", concurrency=2), resident("b"), lock="shared")
    play.arrive("1", "a")
    play.arrive("2", "a")
    assert play.unload_by_hand("a") == []
    assert play.states()["a"] == "draining"
    assert play.arrive("3", "a") == []
    assert play.end("1") == ["done 1"]
    assert play.end("2") == ["done 2", "unload a"]
    assert play.leaves("a") == ["answer r", "load a"]
    assert play.comes("a") == ["grant 3"]


def test_jobs_that_wait_are_told_that_their_consumer_was_unloaded() -> None:
    play = Playbook(resident("a"))
    play.arrive("1", "a")
    play.arrive("2", "a")
    assert play.unload_by_hand("a") == ["rejected 2: consumer-cooldown"]
    play.unload_by_hand("a", "r2")
    play.end("1")
    assert play.leaves("a") == ["answer r", "answer r2"]


def test_what_is_absent_is_unloaded_already() -> None:
    play = Playbook(absent("a"))
    assert play.unload_by_hand("a") == ["answer r"]


def test_what_nobody_has_asked_yet_is_asked_to_unload() -> None:
    play = Playbook(unknown("a"), blind=True)
    assert play.unload_by_hand("a") == ["unload a"]
    assert play.unloaded("a") == ["answer r"]


def test_a_swap_for_it_is_given_up() -> None:
    play = Playbook(resident("a"), absent("b"), total_mib=8000)
    play.arrive("1", "b")
    assert play.unload_by_hand("b") == ["rejected 1: consumer-cooldown", "answer r"]
    assert play.state.swaps == {}


def test_what_loads_is_unloaded_when_it_has_loaded() -> None:
    play = Playbook(absent("a"))
    play.arrive("1", "a")
    assert play.unload_by_hand("a") == ["rejected 1: consumer-cooldown"]
    assert play.arrive("2", "a") == []
    assert play.comes("a") == ["unload a"]
    assert play.leaves("a") == ["answer r", "load a"]


def test_what_fails_to_load_is_unloaded_by_that() -> None:
    play = Playbook(absent("a"))
    play.arrive("1", "a")
    play.unload_by_hand("a")
    assert play.load_fails("a") == ["answer r"]
    assert play.unload_by_hand("a", "r2") == ["answer r2"]
    assert play.states()["a"] == "cooldown"


def test_a_second_try_at_loading_does_not_keep_the_person_waiting() -> None:
    play = Playbook(absent("a"))
    play.arrive("1", "a")
    play.unload_by_hand("a")
    play.arrive("2", "a")
    assert play.load_fails("a") == ["answer r", "load a"]
    assert play.comes("a") == ["grant 2"]


def test_a_quarantined_consumer_is_asked_again_at_once() -> None:
    play = Playbook(resident("a"))
    play.unload_by_hand("a")
    play.unload_fails("a")
    assert play.unload_by_hand("a", "r2") == ["unload a"]
    assert play.after(10.0) == []
    assert play.leaves("a") == ["answer r2"]


@pytest.mark.parametrize("rule", [{"vram_managed": True}, {"can_unload": False}])
def test_what_has_no_way_to_be_unloaded_is_refused(rule: dict[str, bool]) -> None:
    play = Playbook(resident("a", **rule))
    assert play.unload_by_hand("a") == ["answer r: bad-request"]


def test_one_is_asked_to_unload_when_the_free_memory_of_that_moment_has_been_read() -> None:
    """Its last job may have taken memory since the last reading."""
    play = Playbook(resident("a", 8000), total_mib=12000, free_mib=12000, stale=True)
    play.after(0.5)
    assert play.unload_by_hand("a") == []
    assert play.facts(Sample)[0] == Sample(fast=True)
    assert play.memory(4000) == ["unload a"]
    play.unloaded("a")
    assert play.memory(12000) == ["answer r"]


def test_what_was_loaded_since_the_last_reading_is_not_taken_for_what_did_not_come_back() -> None:
    """Both loaded and left within a moment, each faster than the GPU is read."""
    play = Playbook(absent("a"), absent("b"), total_mib=20000, stale=True, prefetch=True)
    play.memory(20000)
    play.arrive("1", "a")
    play.after(0.01)
    play.loaded("a")
    play.end("1")
    assert play.unload_by_hand("a") == []
    assert play.memory(12000) == ["unload a"]
    play.unloaded("a")
    assert play.memory(20000) == ["answer r"]


def test_a_reading_that_began_before_a_load_was_over_does_not_show_it() -> None:
    play = Playbook(absent("a"), total_mib=20000, stale=True)
    play.memory(20000)
    play.arrive("1", "a")
    began_at = play.now
    play.after(0.01)
    play.loaded("a")
    play.end("1")
    play.unload_by_hand("a")
    late = GpusRead(play.now, tuple(play.gpus.values()), asked_at=began_at)
    assert play.handle(late) == []
    assert play.memory(12000) == ["unload a"]


# One that was not asked, since somebody else uses it


def test_one_in_use_by_somebody_else_stays_and_another_leaves_in_its_place() -> None:
    play = Playbook(resident("a"), resident("b"), absent("c", footprint_mib=12000))
    play.use("a")
    play.use("b")
    assert play.arrive("1", "c") == ["unload a"]
    assert play.declines("a") == ["unload b"]
    assert play.states() == {"a": "resident", "b": "unloading", "c": "absent"}
    assert play["a"].busy


def test_it_is_not_stopped_although_it_has_a_unit() -> None:
    play = Playbook(resident("a", can_escalate=True), absent("b", footprint_mib=20000))
    play.arrive("1", "b")
    assert play.declines("a") == []
    assert play.states()["a"] == "resident"
    play.after(1.0)
    assert play.probe("a", resident=True) == ["unload a"]
    assert play.leaves("a") == ["load b"]


def test_its_own_jobs_go_on_and_a_person_is_told() -> None:
    play = Playbook(resident("a"))
    assert play.unload_by_hand("a") == ["unload a"]
    assert play.declines("a") == ["answer r: unload-failed"]
    assert play.arrive("1", "a") == ["grant 1"]


def test_one_that_hangs_in_a_job_is_not_spared() -> None:
    play = Playbook(resident("a"))
    play.arrive("1", "a")
    play.restart("a")
    play.declines("a")
    assert play.states()["a"] == "quarantined"
