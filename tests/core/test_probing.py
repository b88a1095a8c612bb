from __future__ import annotations

from typing import Any

import pytest

from mgpu.core.effects import GpuHealthChanged
from mgpu.core.events import GpusRead
from mgpu.core.model import ConsumerState, GpuReading
from mgpu.core.probing import DEAF_S
from tests.core.playbook import Playbook, absent, resident, unknown

# A consumer's own word


@pytest.mark.parametrize(
    ("reachable", "resident_", "state"),
    [
        (False, None, "absent"),
        (True, False, "absent"),
        (True, True, "resident"),
        (True, None, "resident"),
    ],
    ids=["nothing listens", "says no", "says yes", "does not tell: it may hold its memory"],
)
def test_the_first_answer_decides_where_a_consumer_is(
    reachable: bool, resident_: bool | None, state: str
) -> None:
    play = Playbook(unknown("a"))
    play.probe("a", reachable=reachable, resident=resident_)
    assert play.states()["a"] == state


def test_jobs_wait_for_the_first_answer() -> None:
    play = Playbook(unknown("a"))
    assert play.arrive("1", "a") == []
    assert play.load("2", "a") == []
    assert play.probe("a", resident=True) == ["done 2", "grant 1"]


@pytest.mark.parametrize("word", [{"reachable": False}, {"resident": False}])
def test_an_idle_consumer_that_says_it_is_absent_is(word: dict[str, Any]) -> None:
    play = Playbook(resident("a"))
    play["a"].measured_mib = 9000
    play["a"].leftover_mib = 100
    play.probe("a", **word)
    assert play.states()["a"] == "absent"
    assert play["a"].measured_mib is None
    assert play["a"].leftover_mib == 0


BROKEN: dict[str, Any] = {"reachable": False, "healthy": False, "alive": True}
"""What runs and does not listen."""


def test_a_consumer_that_runs_and_does_not_listen_is_stopped_when_that_lasts() -> None:
    play = Playbook(resident("a", can_escalate=True))
    for _ in range(3):  # after every job that failed
        assert play.probe("a", **BROKEN) == []
        assert play.states()["a"] == "resident"  # it may be in the middle of a restart of its own
    play.after(DEAF_S)
    assert play.probe("a", **BROKEN) == ["stop a"]
    assert play.states()["a"] == "unloading"


def test_one_that_listens_again_meanwhile_is_left_alone() -> None:
    play = Playbook(resident("a"))
    play.probe("a", **BROKEN)
    play.after(DEAF_S)
    play.probe("a", resident=True)
    play.probe("a", **BROKEN)
    assert play.states()["a"] == "resident"


def test_a_new_process_that_does_not_listen_yet_is_absent_at_once() -> None:
    play = Playbook(resident("a"))
    play.probe("a", **BROKEN, resident=False)
    assert play.states()["a"] == "absent"


def test_one_that_computes_is_left_alone() -> None:
    play = Playbook(resident("a"))
    play.arrive("1", "a")
    for _ in range(3):
        play.probe("a", **BROKEN)
        play.after(DEAF_S)
    assert play.states()["a"] == "resident"


def test_one_that_was_found_like_that_at_the_start_is_loaded_as_an_absent_one() -> None:
    play = Playbook(unknown("a"))
    play.probe("a", **BROKEN)
    assert play.states()["a"] == "absent"


def test_a_busy_consumer_is_believed_when_it_is_idle() -> None:
    play = Playbook(resident("a"))
    play.arrive("1", "a")
    play.probe("a", resident=False)
    assert play.states()["a"] == "resident"
    play.end("1")
    play.probe("a", resident=False)
    assert play.states()["a"] == "absent"


# Computing for somebody else


def test_one_that_computes_for_somebody_else_is_no_victim_until_it_says_otherwise() -> None:
    play = Playbook(resident("a"), absent("b", footprint_mib=20000))
    play.after(1.0)
    play.probe("a", resident=True, busy=True)
    assert play.arrive("1", "b") == []
    assert play.snapshot().consumers["a"].busy
    assert play.probe("a", resident=True) == ["unload a"]


def test_one_that_computes_for_somebody_else_is_not_idle() -> None:
    play = Playbook(resident("a", idle_unload_s=10.0))
    play.after(5.0)
    play.probe("a", resident=True, busy=True)
    assert play.after(60.0) == []
    play.probe("a", resident=True)
    assert play.after(9.9) == []
    assert play.after(0.2) == ["unload a"]


@pytest.mark.parametrize("asked_s_ago", [0.5, 1.0])
def test_that_it_computes_is_no_wonder_when_it_was_asked_during_a_job(asked_s_ago: float) -> None:
    play = Playbook(resident("a"), absent("b", footprint_mib=20000))
    play.arrive("1", "a")
    play.probe("a", resident=True, busy=True)
    play.end("1")
    play.after(0.5)
    play.probe("a", resident=True, busy=True, asked_s_ago=asked_s_ago)
    assert play.arrive("2", "b") == ["unload a"]


def test_what_it_said_before_it_was_loaded_or_unloaded_counts_no_more() -> None:
    play = Playbook(resident("a"), absent("b", footprint_mib=20000))
    play.after(1.0)
    play.probe("a", resident=True, busy=True, attempt=play["a"].attempt - 1)
    assert play.arrive("1", "b") == ["unload a"]


def test_a_person_may_unload_one_that_computes_for_somebody_else() -> None:
    play = Playbook(resident("a"))
    play.after(1.0)
    play.probe("a", resident=True, busy=True)
    assert play.unload_by_hand("a") == ["unload a"]
    assert not play["a"].busy


def test_an_answer_from_before_the_last_load_or_unload_is_void() -> None:
    play = Playbook(absent("a"))
    before = play["a"].attempt
    play.arrive("1", "a")
    during = play["a"].attempt
    play.comes("a")
    play.end("1")
    play.probe("a", resident=False, attempt=before)
    play.probe("a", resident=False, attempt=during)
    assert play.states()["a"] == "resident"


@pytest.mark.parametrize("resident_", [True, False])
def test_while_it_loads_or_unloads_its_word_changes_nothing(resident_: bool) -> None:
    play = Playbook(absent("a"), resident("b"))
    play.arrive("1", "a")
    play.unload_by_hand("b")
    play.probe("a", resident=resident_)
    play.probe("b", resident=resident_)
    assert play.states() == {"a": "loading", "b": "unloading"}


def test_one_that_loaded_by_itself_is_resident_and_its_jobs_compute() -> None:
    play = Playbook(resident("a"), absent("b"), total_mib=8000, lock="shared")
    play.arrive("1", "a")
    play.arrive("2", "b")
    assert play.probe("b", resident=True) == ["grant 2"]


def test_one_that_loaded_after_all_ends_its_cooldown() -> None:
    play = Playbook(absent("a"))
    play.arrive("1", "a")
    play.load_fails("a")
    play.load_fails("a")
    play.probe("a", resident=True)
    assert play.states()["a"] == "resident"
    assert play.after(10.0) == []
    assert play.arrive("2", "a") == ["grant 2"]


def test_an_absent_one_that_does_not_tell_stays_absent() -> None:
    play = Playbook(absent("a"))
    play.probe("a")
    assert play.states()["a"] == "absent"


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ({"reachable": False}, "absent"),
        ({"resident": False}, "absent"),
        ({"resident": True}, "quarantined"),
        ({"reachable": False, "alive": True}, "quarantined"),
    ],
)
def test_a_quarantine_ends_when_its_consumer_is_gone(word: dict[str, Any], state: str) -> None:
    play = Playbook(resident("a"))
    play.unload_by_hand("a")
    play.unload_fails("a")
    play.probe("a", **word)
    assert play.states()["a"] == state


def test_a_dead_victim_lets_the_waiting_load() -> None:
    play = Playbook(resident("a"), absent("b"), total_mib=8000)
    play.unload_by_hand("a")
    play.unload_fails("a")
    play.memory(7000)
    play.probe("a", reachable=False)
    play.memory(8000)
    assert play.arrive("1", "b") == ["load b"]


def test_a_lazy_consumer_need_not_be_resident_before_its_first_job() -> None:
    play = Playbook(resident("a"), absent("image", can_load=False), absent("b", 4000))
    play.arrive("1", "image")
    play.leave("1")
    play.arrive("2", "a")
    assert play.states()["image"] == "resident"
    play.end("1")
    play.arrive("3", "image")
    play.probe("image", resident=False)
    assert play.states()["image"] == "resident"
    play.leave("3")
    play.probe("image", resident=False)
    assert play.states()["image"] == "absent"


def test_a_lazy_consumer_without_a_process_is_absent_whoever_waits() -> None:
    play = Playbook(resident("a"), resident("image", can_load=False))
    play.arrive("1", "a")
    play.arrive("2", "image")
    play.probe("image", reachable=False)
    assert play.states()["image"] == "absent"


def test_one_that_manages_its_own_memory_is_resident_whatever_it_says() -> None:
    play = Playbook(unknown("own", vram_managed=True))
    play.probe("own", reachable=False)
    assert play.states()["own"] == "resident"
    assert not play["own"].healthy


def test_health_is_taken_from_every_answer() -> None:
    play = Playbook(resident("a"))
    play.arrive("1", "a")
    for reachable, healthy in ((True, False), (False, True), (True, True)):
        play.probe("a", reachable=reachable, healthy=healthy, attempt=-1)
        assert play["a"].healthy is (reachable and healthy)


def test_one_that_could_be_loaded_is_healthy_again() -> None:
    play = Playbook(absent("a"))
    play.probe("a", reachable=False)
    play.arrive("1", "a")
    assert not play["a"].healthy
    play.loaded("a")
    assert play["a"].healthy


def test_one_that_dies_beside_an_unload_makes_its_memory_no_proof() -> None:
    play = Playbook(resident("a"), resident("b"))
    play.unload_by_hand("a")
    play.unloaded("a")
    play.probe("b", reachable=False)
    play.memory(24576)
    assert play.states()["a"] == "unloading"
    assert play.after(5.0) == ["answer r"]


# The GPUs' word


def test_a_gpu_that_is_missing_from_a_reading_has_gone_away() -> None:
    play = Playbook(resident("a", gpus=(0,)), resident("b", gpus=(1,)), total_mib=(10000, 10000))
    del play.gpus[1]
    play.memory(2000)
    assert play.arrive("1", "a") == ["grant 1"]
    assert play.arrive("2", "b") == ["rejected 2: gpu-unhealthy"]
    assert play.state.gpus[1].error == "it is not there any more"


def test_a_failed_reading_keeps_the_last_good_figures() -> None:
    play = Playbook(resident("a"))
    play.memory(0, error="unknown error")
    gpu = play.state.gpus[0]
    assert (gpu.total_mib, gpu.free_mib, gpu.healthy) == (24576, 16576, False)


def test_who_and_what_a_gpu_is_is_kept_when_a_reading_does_not_tell() -> None:
    play = Playbook(resident("a"))
    read = GpuReading(index=0, uuid="GPU-1", name="H200", total_mib=24576, free_mib=24576)
    play.handle(GpusRead(play.now, (read,)))
    play.handle(GpusRead(play.now, (GpuReading(index=0, error="lost"),)))
    assert (play.state.gpus[0].uuid, play.state.gpus[0].name) == ("GPU-1", "H200")


def test_with_several_gpus_an_unplaced_consumer_is_taken_to_live_on_the_first() -> None:
    play = Playbook(resident("a"), resident("b", gpus=(1,)), total_mib=(24576, 24576))
    assert play["a"].gpus == (0,)
    assert play["b"].gpus == (1,)


def test_one_that_was_initially_absent_can_be_found_resident() -> None:
    play = Playbook(absent("a"))
    play.probe("a", resident=True)
    assert play["a"].state is ConsumerState.RESIDENT


class TestWhereItLives:
    def test_is_where_the_consumer_says(self) -> None:
        play = Playbook(unknown("a"), total_mib=(24576, 24576))
        play.probe("a", resident=True, gpus=(1,))
        assert play["a"].gpus == (1,)
        play.arrive("1", "a")
        assert play.state.gpus[1].holders.keys() == {"a"}

    def test_stays_while_it_computes_is_loaded_or_leaves(self) -> None:
        play = Playbook(resident("a"), absent("b", gpus=(0,)), total_mib=(24576, 24576))
        play.arrive("1", "a")
        play.probe("a", resident=True, gpus=(1,))
        assert play["a"].gpus == (0,)
        play.end("1")
        play.unload_by_hand("a")
        play.probe("a", resident=True, gpus=(1,))
        assert play["a"].gpus == (0,)
        play.arrive("2", "b")
        play.probe("b", gpus=(1,))
        assert play["b"].gpus == (0,)

    def test_is_no_gpu_that_is_not_there(self) -> None:
        play = Playbook(resident("a"))
        play.probe("a", resident=True, gpus=(7,))
        assert play["a"].gpus == (0,)


# What is told about the GPUs


def test_that_a_gpu_stops_answering_and_answers_again_is_told_once_each() -> None:
    play = Playbook(resident("a"))
    play.gpus_lost("NVML has not answered for 2 s")
    assert play.facts(GpuHealthChanged) == [GpuHealthChanged(0, "NVML has not answered for 2 s")]
    play.gpus_lost("NVML has not answered for 3 s")
    assert play.facts(GpuHealthChanged) == []
    play.memory(16000)
    assert play.facts(GpuHealthChanged) == [GpuHealthChanged(0, None)]


def test_that_no_gpu_was_ever_seen_is_told_until_one_is() -> None:
    play = Playbook(resident("a"), blind=True)
    play.gpus_lost("no driver")
    assert play.facts(GpuHealthChanged) == [GpuHealthChanged(None, "no driver")]
    play.memory(16000)
    assert play.facts(GpuHealthChanged) == [GpuHealthChanged(None, None)]


def test_a_gpu_that_has_gone_away_holds_up_nothing_on_another() -> None:
    play = Playbook(
        resident("a", gpus=(1,)),
        absent("b", 20000, gpus=(1,)),
        total_mib=[24576, 24576],
        stale=True,
    )
    play.memory(16576, gpu=1)
    play.after(10)
    only = GpusRead(play.now, (play.gpus[1],))
    play.handle(only)
    assert play.arrive("1", "b") == ["unload a"]
