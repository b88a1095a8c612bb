from __future__ import annotations

from typing import Any

import pytest

from mgpu.core import vram
from mgpu.core.effects import Sample
from mgpu.core.model import Outcome
from tests.core.playbook import Playbook, absent, resident


def available_mib(play: Playbook, target: str, gpu: int = 0) -> int:
    return vram.available_mib(play.state, play.state.gpus[gpu], target)


@pytest.mark.parametrize(
    ("total_mib", "gpus", "share_mib"), [(10, (0,), 10), (10, (0, 1), 5), (10, (0, 1, 2), 4)]
)
def test_each_of_several_gpus_carries_its_share_rounded_up(
    total_mib: int, gpus: tuple[int, ...], share_mib: int
) -> None:
    assert vram.share_mib(total_mib, gpus) == share_mib


def test_memory_is_to_be_had_when_books_and_measurement_both_say_so() -> None:
    play = Playbook(resident("a", 8000), absent("b"), total_mib=24000)
    assert available_mib(play, "b") == 16000
    play.memory(10000)
    assert available_mib(play, "b") == 10000
    play.memory(24000)
    assert available_mib(play, "b") == 16000


def test_the_cushion_is_kept() -> None:
    play = Playbook(absent("b"), total_mib=24000, cushion_mib=256)
    assert available_mib(play, "b") == 23744


def test_a_footprint_is_the_larger_of_configured_and_measured() -> None:
    play = Playbook(resident("a", 8000), absent("b"), total_mib=24000)
    play["a"].measured_mib = 7000
    assert available_mib(play, "b") == 16000
    play["a"].measured_mib = 9000
    assert available_mib(play, "b") == 15000


def test_an_absent_consumer_is_billed_what_it_keeps() -> None:
    play = Playbook(absent("a", residual_mib=300), absent("b"), total_mib=24000)
    play["a"].leftover_mib = 500
    assert available_mib(play, "b") == 23200


def test_a_targets_own_residual_is_not_held_against_it_twice() -> None:
    play = Playbook(absent("a", residual_mib=300), total_mib=24000)
    assert available_mib(play, "a") == 24000
    play.memory(23700)
    assert available_mib(play, "a") == 23700


def test_one_that_manages_its_own_memory_is_billed_nothing() -> None:
    play = Playbook(resident("own", 8000, vram_managed=True), absent("b"), total_mib=24000)
    play.memory(24000)
    assert available_mib(play, "b") == 24000
    assert vram.held_mib(play["own"]) == 0


def test_a_load_under_way_keeps_its_room_from_the_others() -> None:
    play = Playbook(absent("a", 8000), absent("b"), total_mib=24000)
    play.arrive("1", "a")
    assert available_mib(play, "b") == 16000
    assert available_mib(play, "a") == 24000
    play.comes("a")
    assert available_mib(play, "b") == 16000


# A consumer that its first job loads


def lazy_beside_foreign_memory(**policy: Any) -> Playbook:
    """Of 24000 MiB others hold 2000, and 8000 are kept for a job of ``image`` that computes."""
    image = absent("image", 8000, can_load=False, concurrency=2)
    play = Playbook(image, absent("b"), absent("c"), total_mib=24000, free_mib=22000, **policy)
    assert play.arrive("1", "image") == ["grant 1"]
    return play


def test_its_memory_is_outstanding_from_when_its_room_was_made() -> None:
    play = lazy_beside_foreign_memory()
    assert available_mib(play, "b") == 14000
    play.memory(17000)
    assert available_mib(play, "b") == 14000
    play.memory(14000)
    assert available_mib(play, "b") == 14000


def test_it_is_outstanding_no_more_when_a_job_was_done_and_the_gpu_was_read_since() -> None:
    play = lazy_beside_foreign_memory()
    play.end("1")
    assert available_mib(play, "b") == 14000
    play.now += 0.01
    play.memory(15000)
    assert available_mib(play, "b") == 15000


def test_nobody_leaves_or_loads_on_figures_older_than_the_job_that_loaded_it() -> None:
    play = lazy_beside_foreign_memory(lock="shared", prefetch=True, stale=True)
    play.memory(14000)
    play.end("1")
    assert play.arrive("2", "b") == []
    assert play.facts(Sample)
    play.now += 0.01
    assert play.memory(14000) == ["load b"]


def test_a_gpu_that_cannot_be_read_does_not_keep_others_waiting() -> None:
    play = lazy_beside_foreign_memory()
    play.end("1")
    play.memory(14000, error="lost")
    assert play.state.rooms == {}


def test_a_job_that_failed_shows_nothing() -> None:
    play = lazy_beside_foreign_memory()
    play.end("1", Outcome.FAILED)
    assert available_mib(play, "b") == 14000
    # What moves while none of its jobs runs is not its own.
    play.memory(20000)
    assert available_mib(play, "b") == 12000
    assert play.arrive("2", "image") == ["grant 2"]
    play.memory(12000)
    assert available_mib(play, "b") == 12000


def test_a_load_beside_it_hides_what_it_takes() -> None:
    play = lazy_beside_foreign_memory(lock="shared", prefetch=True)
    assert play.arrive("2", "b") == ["load b"]
    play.memory(10000)
    assert vram.outstanding_mib(play.state, 0) == 16000
    play.end("1")
    play.now += 0.01
    play.memory(10000)
    assert vram.outstanding_mib(play.state, 0) == 8000


def test_between_its_jobs_others_hide_nothing_of_it() -> None:
    play = lazy_beside_foreign_memory(lock="shared", prefetch=True)
    play.arrive("2", "b")
    play.end("1", Outcome.FAILED)
    play.comes("b")
    play.arrive("3", "image")
    play.memory(6000)
    assert available_mib(play, "c") == 6000


def test_its_own_processes_tell_what_it_has_taken() -> None:
    play = lazy_beside_foreign_memory(lock="shared", prefetch=True)
    play.arrive("2", "b")
    play.holds(image=5000, unlisted_mib=2000)
    assert vram.outstanding_mib(play.state, 0, without="b") == 3000


def test_once_it_leaves_nothing_of_it_is_to_come() -> None:
    play = lazy_beside_foreign_memory()
    play.end("1", Outcome.FAILED)
    assert play.unload_by_hand("image") == ["unload image"]
    assert vram.outstanding_mib(play.state, 0) == 0
    play.unloaded("image")
    play.after(10.0)
    assert available_mib(play, "b") == 22000


def test_its_room_and_foreign_memory_are_not_given_to_another() -> None:
    play = Playbook(
        absent("speech", 8000, can_load=False),
        absent("image", 16000),
        total_mib=24576,
        free_mib=23376,
        cushion_mib=256,
        prefetch=True,
        lock="shared",
    )
    assert play.arrive("1", "speech") == ["grant 1"]
    assert play.arrive("2", "image") == []
    play.memory(15376)
    assert play.end("1") == ["done 1"]
    play.now += 0.01
    assert play.memory(15376) == ["unload speech"]


def test_what_no_consumer_accounts_for_is_foreign() -> None:
    play = Playbook(resident("a", 8000), absent("b", 4000), total_mib=24000)
    play.memory(10000)
    assert vram.foreign_mib(play.state, play.state.gpus[0]) == 6000
    play.arrive("1", "b")
    play.memory(7000)
    assert vram.foreign_mib(play.state, play.state.gpus[0]) == 5000


def test_a_consumer_over_two_gpus_is_billed_on_both() -> None:
    play = Playbook(resident("a", 9001, gpus=(0, 1)), absent("b"), total_mib=(24000, 24000))
    play.memory(24000)
    play.memory(24000, gpu=1)
    assert [available_mib(play, "b", gpu) for gpu in (0, 1)] == [19499, 19499]


def test_leftovers_are_written_off_only_as_far_as_they_cannot_be_there() -> None:
    play = Playbook(absent("a"), absent("b"), total_mib=24000, free_mib=22000)
    play["a"].leftover_mib = 1000
    play["b"].leftover_mib = 2000
    play.memory(22000)
    assert (play["a"].leftover_mib, play["b"].leftover_mib) == (0, 2000)
    play.memory(23500)
    assert (play["a"].leftover_mib, play["b"].leftover_mib) == (0, 500)
