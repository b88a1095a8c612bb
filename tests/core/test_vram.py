from __future__ import annotations

import pytest

from mgpu.core import vram
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
