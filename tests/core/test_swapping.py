from __future__ import annotations

import pytest

from mgpu.core import vram
from mgpu.core.effects import (
    FootprintLearned,
    LoadMeasured,
    Sample,
    SetTimer,
    StartLoad,
    SwapMeasured,
)
from mgpu.core.events import Timer, TimerKind
from mgpu.core.model import GpuReading
from tests.core.playbook import Playbook, absent, resident

# Room first


def test_a_load_begins_only_when_the_measured_free_memory_covers_footprint_and_cushion() -> None:
    play = Playbook(absent("tts"), free_mib=8255, cushion_mib=256, when_nothing_to_evict="reject")
    assert play.arrive("1", "tts") == ["rejected 1: vram-unavailable"]
    play.memory(8256)
    assert play.arrive("2", "tts") == ["load tts"]


def test_what_the_books_promise_is_not_enough() -> None:
    """Absent by the books, but a foreign process sits where the room should be."""
    play = Playbook(resident("stt"), absent("tts"), total_mib=16000, free_mib=7000)
    assert play.arrive("1", "tts") == ["unload stt"]
    play.unloaded("stt")
    assert play.memory(7999) == []
    assert play.memory(8000) == ["load tts"]


def test_what_is_measured_is_not_enough_either() -> None:
    """Resident by the books, but its memory does not show as used yet."""
    play = Playbook(resident("stt"), absent("tts"), total_mib=16000 - 1, free_mib=15999)
    assert play.arrive("1", "tts") == ["unload stt"]


def test_memory_that_comes_back_late_and_in_steps_costs_exactly_one_victim() -> None:
    play = Playbook(resident("a"), resident("b"), absent("new"), total_mib=16000)
    assert play.arrive("1", "new") == ["unload a"]
    play.after(0.2)
    assert play.unloaded("a") == []
    for free_mib in (0, 2000, 4000, 7500):
        assert play.memory(free_mib) == []
        play.after(0.3)
    play.after(0.3)
    assert play.memory(8000) == ["load new"]
    assert play.state.evictions == 1
    assert play.states() == {"a": "absent", "b": "resident", "new": "loading"}


def test_memory_that_is_free_before_the_unload_is_answered_is_not_taken_yet() -> None:
    play = Playbook(resident("a"), absent("new"), total_mib=8000)
    play.arrive("1", "new")
    assert play.memory(8000) == []
    assert play.unloaded("a") == ["load new"]


def test_a_target_that_needs_less_than_its_victim_gives_does_not_wait_for_the_rest() -> None:
    play = Playbook(resident("a", 8000), absent("new", 3000), total_mib=8000)
    play.arrive("1", "new")
    play.unloaded("a")
    assert play.memory(3000) == ["load new"]
    assert play.states()["a"] == "absent"
    assert play.state.swaps["new"].victims == set()


def test_a_lazy_consumer_gets_its_room_before_its_first_job_is_granted() -> None:
    play = Playbook(resident("llm"), absent("image", can_load=False), total_mib=12000)
    assert play.arrive("1", "image") == ["unload llm"]
    assert play.leaves("llm") == ["grant 1"]
    assert play.state.loads == 1
    assert play.facts(LoadMeasured) == [LoadMeasured("image", ok=True, seconds=None)]
    assert play.facts(SwapMeasured)


def test_the_room_of_a_lazy_consumer_is_kept_until_its_job_fills_it() -> None:
    play = Playbook(absent("image", can_load=False), absent("tts"), total_mib=12000, lock="shared")
    assert play.arrive("1", "image") == ["grant 1"]
    assert play.arrive("2", "tts") == []
    play.memory(4000)
    assert play.end("1") == ["done 1"]
    play.now += 0.01
    assert play.memory(4000) == ["unload image"]


# One swap, many waiters


def test_the_jobs_of_one_consumer_share_one_load() -> None:
    play = Playbook(absent("tts", concurrency=2))
    assert play.arrive("1", "tts") == ["load tts"]
    assert play.arrive("2", "tts") == []
    assert play.arrive("3", "tts") == []
    assert play.comes("tts") == ["grant 1", "grant 2"]


def test_a_load_nobody_waits_for_any_more_is_not_started() -> None:
    play = Playbook(resident("a"), absent("new"), total_mib=8000)
    play.arrive("1", "new")
    assert play.leave("1") == ["cancelled 1: client-left"]
    assert play.state.swaps == {}
    assert play.leaves("a") == []
    assert play.states() == {"a": "absent", "new": "absent"}


def test_a_swap_goes_on_for_those_who_stay() -> None:
    play = Playbook(resident("a"), absent("new"), total_mib=8000)
    play.arrive("1", "new")
    play.arrive("2", "new")
    play.leave("1")
    assert play.leaves("a") == ["load new"]


def test_a_load_under_way_is_finished_although_everybody_left() -> None:
    play = Playbook(absent("tts"))
    play.arrive("1", "tts")
    assert play.leave("1") == ["cancelled 1: client-left"]
    assert play.comes("tts") == []
    assert play.states()["tts"] == "resident"


def test_one_swap_at_a_time_on_one_gpu() -> None:
    play = Playbook(absent("a", 4000), absent("b", 4000))
    assert play.arrive("1", "a") == ["load a"]
    assert play.arrive("2", "b") == []
    assert play.comes("a") == ["grant 1"]
    assert play.end("1") == ["done 1", "load b"]


def test_resident_consumers_compute_while_another_loads() -> None:
    play = Playbook(resident("a", 4000), absent("b", 4000))
    play.arrive("1", "b")
    assert play.arrive("2", "a") == ["grant 2"]
    assert play.comes("b") == []
    assert play.end("2") == ["done 2", "grant 1"]


def test_a_victims_own_jobs_wait_until_it_can_come_back() -> None:
    play = Playbook(resident("a"), absent("b"), total_mib=8000)
    play.arrive("1", "b")
    assert play.arrive("2", "a") == []
    assert play.leaves("a") == ["load b"]
    assert play.comes("b") == ["grant 1"]
    assert play.end("1") == ["done 1", "unload b"]
    assert play.leaves("b") == ["load a"]
    assert play.comes("a") == ["grant 2"]


# Plans that the world overtakes


def test_when_others_take_the_memory_meanwhile_it_is_planned_anew() -> None:
    play = Playbook(resident("a"), resident("b"), absent("new"), total_mib=16000)
    play.arrive("1", "new")
    play.unloaded("a")
    play.memory(5000)
    assert play.after(5.0) == ["unload b"]
    assert play.states()["a"] == "absent"
    assert play.leaves("b") == ["load new"]


def test_when_no_plan_is_left_the_job_is_refused() -> None:
    play = Playbook(resident("a"), absent("new"), total_mib=8000)
    play.arrive("1", "new")
    play.unloaded("a")
    play.memory(5000)
    assert play.after(5.0) == ["rejected 1: vram-unavailable"]
    assert play.state.swaps == {}


def test_a_gpu_that_is_lost_while_victims_leave_holds_the_swap_up() -> None:
    play = Playbook(resident("a"), absent("new"), total_mib=8000)
    play.arrive("1", "new")
    play.gpus_lost()
    assert play.unloaded("a") == []
    assert play.after(5.0) == []
    assert play.states()["a"] == "absent"
    assert play.memory(8000) == ["load new"]


def test_a_target_that_turns_out_to_be_resident_needs_no_room() -> None:
    play = Playbook(resident("a"), absent("new"), total_mib=8000)
    play.arrive("1", "new")
    assert play.probe("new", resident=True) == ["grant 1"]
    assert play.state.swaps == {}
    play.leaves("a")
    play.after(5.0)
    assert play.states() == {"a": "absent", "new": "resident"}


# Failures


def test_a_load_that_fails_is_tried_once_more_after_everybody_permitted_has_left() -> None:
    play = Playbook(resident("a", 2000), resident("b", 2000, pinned=True), absent("new"))
    play.arrive("1", "new")
    assert play.load_fails("new") == ["unload a"]
    assert play.unloaded("a") == []
    assert play.memory(22576) == ["load new"]
    assert play.comes("new") == ["grant 1"]


def test_nobody_leaves_for_one_that_was_not_even_begun() -> None:
    play = Playbook(resident("a", 2000), absent("new"))
    play.arrive("1", "new")
    assert play.load_fails("new", "nothing listens", begun=False) == ["load new"]
    assert play.load_fails("new", "nothing listens", begun=False) == ["failed 1: load-failed"]
    assert play.states()["a"] == "resident"


def test_one_that_was_not_begun_holds_nothing_that_is_waited_for() -> None:
    play = Playbook(absent("a"), resident("b"), absent("c", 12000), free_mib=8576)
    play.arrive("1", "a")
    play.load_fails("a", begun=False)
    play.load_fails("a", begun=False)
    assert play.arrive("2", "c") == ["unload b"]


def test_one_that_has_loaded_after_all_has_no_try_left_to_wait_for() -> None:
    play = Playbook(absent("new", 16000, load_key="own"), stale=True)
    play.memory(24576)
    assert play.arrive("1", "new", load_key="long") == ["load new with long"]
    play.memory(8576)
    assert play.load_fails("new", "no answer in time") == []
    play.after(1.0)
    assert play.probe("new", resident=True) == []
    assert play.states()["new"] == "unloading"
    assert play.after(play.state.policy.settle_timeout_s) == []
    assert play.memory(8576) == ["unload new"]


def test_with_nobody_to_leave_it_is_tried_again_at_once() -> None:
    play = Playbook(absent("new"))
    play.arrive("1", "new")
    assert play.load_fails("new") == ["load new"]


def test_after_the_second_failure_its_jobs_fail_and_it_is_left_alone() -> None:
    play = Playbook(absent("new"))
    play.arrive("1", "new")
    play.load("2", "new")
    play.load_fails("new")
    assert play.load_fails("new", "CUDA error") == [
        "failed 1: load-failed",
        "failed 2: load-failed",
    ]
    assert play.states()["new"] == "cooldown"
    refusal = play.ended["1"].refusal
    assert refusal is not None
    assert refusal.detail == "new could not be loaded: CUDA error"
    assert refusal.retry_after_s == 1.0
    play.after(0.4)
    assert play.arrive("3", "new") == ["rejected 3: consumer-cooldown"]
    refusal = play.ended["3"].refusal
    assert refusal is not None
    assert refusal.detail == "new is left alone for 0.6 s: load failed: CUDA error"
    assert refusal.retry_after_s == pytest.approx(0.6)
    play.after(0.6)
    assert play.arrive("4", "new") == ["load new"]


def test_the_cooldown_doubles_up_to_five_minutes_until_a_load_succeeds() -> None:
    play = Playbook(absent("new"))
    pauses = []
    for number in range(11):
        play.arrive(f"j{number}", "new")
        play.load_fails("new")
        play.load_fails("new")
        pauses.append(play["new"].held_off_until - play.now)
        play.after(pauses[-1])
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    play.arrive("good", "new")
    play.loaded("new")
    assert play["new"].failures == 0


def test_a_load_that_fails_when_nobody_waits_is_not_repeated() -> None:
    play = Playbook(absent("new"))
    play.arrive("1", "new")
    play.leave("1")
    assert play.load_fails("new") == []
    assert play.states()["new"] == "cooldown"


def test_a_second_try_that_has_to_be_planned_anew_is_still_the_last() -> None:
    play = Playbook(resident("a", 2000), absent("new"))
    play.arrive("1", "new")
    play.load_fails("new")
    play.unloaded("a")
    play.gpus_lost()
    assert play.after(5.0) == []
    assert play.memory(24576) == ["load new"]
    assert play.load_fails("new") == ["failed 1: load-failed"]


def test_a_second_try_waits_for_a_gpu_that_answers() -> None:
    play = Playbook(absent("new"))
    play.arrive("1", "new")
    play.gpus_lost()
    assert play.load_fails("new") == []
    assert play.after(5.0) == []
    assert play.state.swaps == {}
    assert play.memory(24576) == ["load new"]


def test_a_second_try_waits_for_what_the_first_one_held_but_not_for_ever() -> None:
    play = Playbook(absent("new"), total_mib=12000)
    play.arrive("1", "new")
    play.memory(2000)
    assert play.load_fails("new") == []
    assert play.after(4.9) == []
    assert play.after(0.1) == ["rejected 1: vram-unavailable"]


def test_the_answer_to_a_load_that_was_given_up_changes_nothing() -> None:
    play = Playbook(absent("new"))
    play.arrive("1", "new")
    first = play.facts(StartLoad)[0].attempt
    play.load_fails("new")
    assert play.loaded("new", attempt=first) == []
    assert play.states()["new"] == "loading"
    play.load_fails("new")
    assert play.loaded("new", attempt=first + 2) == []
    assert play.loaded("new") == []
    assert play.states()["new"] == "cooldown"


# Footprints


def test_a_footprint_is_relearned_from_the_fall_of_free_memory() -> None:
    play = Playbook(absent("new", 8000))
    play.arrive("1", "new")
    for free_mib in (20000, 14576, 15000):
        play.memory(free_mib)
    play.loaded("new")
    assert play.facts(FootprintLearned) == [FootprintLearned("new", 10000)]
    assert play["new"].footprint_mib == 10000


def test_a_smaller_one_than_configured_is_known_but_not_counted_on() -> None:
    play = Playbook(absent("new", 8000))
    play.arrive("1", "new")
    play.memory(18576)
    play.loaded("new")
    assert play["new"].measured_mib == 6000
    assert play["new"].footprint_mib == 8000
    assert play.facts(FootprintLearned) == []


def test_a_failed_load_teaches_only_that_more_is_needed() -> None:
    play = Playbook(absent("new", 8000), total_mib=12000)
    play.arrive("1", "new")
    play.memory(1000)
    play.load_fails("new")
    assert play["new"].measured_mib == 11000
    assert play.memory(12000) == ["load new"]
    play.memory(7000)
    play.load_fails("new")
    assert play["new"].measured_mib == 11000


def test_a_footprint_never_grows_past_what_its_gpu_can_hold() -> None:
    play = Playbook(absent("new", 8000), total_mib=12000, cushion_mib=256)
    play.arrive("1", "new")
    play.memory(0)
    play.loaded("new")
    assert play["new"].measured_mib == 11744
    assert play.end("1") == ["done 1"]


@pytest.mark.parametrize("others", ["computes", "unloads", "is lost"])
def test_nothing_is_learned_from_a_load_that_others_disturbed(others: str) -> None:
    play = Playbook(absent("new", 8000), resident("a", 4000))
    play.arrive("1", "new")
    if others == "computes":
        play.arrive("2", "a")
    elif others == "unloads":
        play.unload_by_hand("a")
    else:
        play.gpus_lost()
    play.memory(5000)
    play.loaded("new")
    assert play["new"].measured_mib is None


def test_nothing_is_learned_while_a_victim_may_still_give_memory_back() -> None:
    play = Playbook(resident("a", 8000), absent("new", 3000), total_mib=8000)
    play.arrive("1", "new")
    play.unloaded("a")
    play.memory(3000)
    play.memory(2000)
    play.loaded("new")
    assert play["new"].measured_mib is None


def test_a_load_on_another_gpu_disturbs_nothing() -> None:
    play = Playbook(
        absent("a", 8000, gpus=(0,)), absent("b", 8000, gpus=(1,)), total_mib=(24576, 24576)
    )
    play.arrive("1", "a")
    play.arrive("2", "b")
    assert play.comes("a") == ["grant 1"]
    assert play["a"].measured_mib == 8000


# Times


def test_min_resident_s_sets_a_timer_that_looks_again() -> None:
    play = Playbook(absent("new"), min_resident_s=10.0)
    play.arrive("1", "new")
    play.comes("new")
    timer = Timer(TimerKind.MIN_RESIDENT, "new", play["new"].attempt)
    assert SetTimer(timer, 10.0) in play.effects


def test_a_load_is_timed() -> None:
    play = Playbook(absent("new"))
    play.arrive("1", "new")
    play.after(3.0)
    play.load_fails("new")
    assert play.facts(LoadMeasured) == [LoadMeasured("new", ok=False, seconds=3.0)]


def test_gpus_that_appear_later_are_used() -> None:
    play = Playbook(absent("new"), total_mib=4000)
    assert play.arrive("1", "new") == ["rejected 1: never-fits"]
    play.gpus[1] = GpuReading(index=1, total_mib=24576, free_mib=24576)
    play.memory(4000)
    assert play.arrive("2", "new") == ["load new on 1"]


def test_who_has_to_leave_is_decided_on_figures_taken_just_now() -> None:
    play = Playbook(resident("old"), absent("new"), total_mib=20000, free_mib=6000, stale=True)
    play.after(0.5)
    assert play.arrive("1", "new") == []
    assert play.facts(Sample) == [Sample(fast=False)]
    # A foreign process has given its memory back meanwhile, so that nobody has to leave.
    assert play.memory(12000) == ["load new"]


def test_figures_taken_a_moment_ago_are_good_enough() -> None:
    play = Playbook(resident("old"), absent("new"), total_mib=12000, stale=True)
    play.after(vram.FRESH_S / 2)
    assert play.arrive("1", "new") == ["unload old"]


def test_memory_an_earlier_victim_still_owes_is_waited_for_instead_of_another_victim() -> None:
    play = Playbook(resident("a"), resident("b"), absent("c", 4000), absent("d", 4000))
    play.memory(0)
    play.state.gpus[0].total_mib = 16000
    play.gpus[0] = GpuReading(index=0, total_mib=16000, free_mib=0)
    play.use("b")
    assert play.arrive("1", "c") == ["unload a"]
    play.unloaded("a")
    assert play.memory(4000) == ["load c"]
    play.memory(0)
    assert play.loaded("c") == ["grant 1"]
    play.end("1")
    # 4000 MiB of a are still to come: by the books d fits beside b and c.
    assert play.arrive("2", "d") == []
    assert play.memory(4000) == ["load d"]


def test_memory_that_is_owed_for_too_long_is_not_counted_on() -> None:
    play = Playbook(resident("a"), resident("b"), absent("c", 4000), absent("d", 4000))
    play.state.gpus[0].total_mib = 16000
    play.gpus[0] = GpuReading(index=0, total_mib=16000, free_mib=0)
    play.use("b")
    play.arrive("1", "c")
    play.unloaded("a")
    play.memory(4000)
    play.memory(0)
    play.loaded("c")
    play.end("1")
    assert play.arrive("2", "d") == []
    play.after(6.0)
    assert "unload" in str(play.memory(0))


def test_a_second_try_takes_no_place_in_the_name_of_a_job_that_has_left() -> None:
    """The urgent job for which the load was begun is not there any more, when it fails."""
    play = Playbook(
        resident("busy", 4000), resident("s", 4000), absent("t", 4000), total_mib=12000,
        prefetch=True,
    )  # fmt: skip
    play.arrive("0", "busy")
    assert play.arrive("urgent", "t", priority=5) == ["load t"]
    play.arrive("later", "t")
    play.arrive("s", "s", priority=1)
    play.leave("urgent")
    assert play.load_fails("t") == ["load t"]
