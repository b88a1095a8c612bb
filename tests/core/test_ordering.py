from __future__ import annotations

from typing import Any

import pytest

from mgpu.core import prospects
from tests.core.playbook import Playbook, absent, resident

ABCABC = "ABCABC"


def served(play: Playbook) -> str:
    """Play on until nothing happens any more; the consumers in the order of their grants."""
    order = ""
    for _ in range(1000):
        play.after(0.5)
        busy = {name: str(c.state) for name, c in play.state.consumers.items()}
        if job := next((j for j in play.state.jobs.values() if j.token), None):
            order += job.consumer
            play.end(job.id)
        elif leaving := [name for name, state in busy.items() if state == "unloading"]:
            play.leaves(leaving[0])
        elif loading := [name for name, state in busy.items() if state == "loading"]:
            play.comes(loading[0])
        else:
            return order
    raise AssertionError("it never ends")


def one_at_a_time(order: str, arrivals: str, **policy: Any) -> Playbook:
    play = Playbook(*(absent(name) for name in "ABC"), total_mib=8000, order=order, **policy)
    for number, name in enumerate(arrivals):
        play.arrive(f"{number}", name)
        play.after(0.01)
    return play


def test_arrival_serves_strictly_in_order_of_arrival() -> None:
    play = one_at_a_time("arrival", "ABCA")
    assert served(play) == "ABCA"
    assert play.state.loads == 4


def test_resident_first_serves_the_jobs_of_whoever_is_there() -> None:
    play = one_at_a_time("resident-first", ABCABC)
    assert served(play) == "AABBCC"
    assert play.state.loads == 3


def test_nobody_overtakes_a_job_that_has_waited_for_max_overtake_s() -> None:
    play = one_at_a_time("resident-first", "AB", max_overtake_s=20.0)
    for number in range(100):
        play.arrive(f"more {number}", "A", max_wait_s=1e6)
        if len(play["A"].waiting) > 60:
            break
    order = served(play)
    assert order.index("B") <= 41
    assert order.startswith("A" * 30)


def test_an_overdue_job_holds_up_all_who_share_its_gpu_until_it_is_served() -> None:
    play = Playbook(resident("a", concurrency=2), absent("b"), total_mib=8000, max_overtake_s=10.0)
    play.arrive("1", "a")
    play.arrive("2", "b")
    play.after(5.0)
    assert play.arrive("3", "a") == ["grant 3"]
    play.after(5.0)
    assert play.end("1") == ["done 1"]
    assert play.arrive("4", "a") == []
    assert play.end("3") == ["done 3", "unload a"]


def test_the_oldest_job_of_a_consumer_goes_first_when_it_is_overdue() -> None:
    play = Playbook(resident("a"), max_overtake_s=10.0)
    play.arrive("0", "a")
    play.arrive("old", "a")
    play.after(10.0)
    play.arrive("urgent", "a", priority=9)
    assert play.end("0") == ["done 0", "grant old"]


@pytest.mark.parametrize("order", ["planned", "arrival", "resident-first"])
def test_a_job_that_has_waited_for_long_enough_goes_before_every_priority(order: str) -> None:
    play = Playbook(resident("a"), order=order, max_overtake_s=20.0)
    play.arrive("1", "a")
    play.arrive("2", "a", priority=-5)
    play.after(19.0)
    play.arrive("3", "a", priority=5)
    play.arrive("4", "a", priority=5)
    assert play.end("1") == ["done 1", "grant 3"]
    play.after(1.0)
    assert play.end("3") == ["done 3", "grant 2"]


def test_a_higher_priority_goes_first_within_a_consumer() -> None:
    play = Playbook(resident("a"))
    play.arrive("0", "a")
    play.arrive("1", "a")
    play.arrive("2", "a", priority=1)
    play.arrive("3", "a", priority=1)
    assert play.end("0") == ["done 0", "grant 2"]
    assert play.end("2") == ["done 2", "grant 3"]
    assert play.end("3") == ["done 3", "grant 1"]


@pytest.mark.parametrize("order", ["arrival", "resident-first"])
def test_a_higher_priority_goes_first_among_consumers_even_if_it_has_to_load(order: str) -> None:
    play = Playbook(resident("a"), absent("b", priority=1), total_mib=8000, order=order)
    play.arrive("1", "a")
    play.arrive("2", "a")
    play.arrive("3", "b")
    assert play.end("1") == ["done 1", "unload a"]


def test_jobs_of_a_lower_priority_do_not_prolong_a_hold_that_a_higher_one_waits_for() -> None:
    play = Playbook(resident("a", concurrency=2), resident("b", priority=1))
    play.arrive("1", "a")
    play.arrive("2", "b")
    assert play.arrive("3", "a") == []
    assert play.arrive("4", "a", priority=1) == ["grant 4"]
    play.end("1")
    assert play.end("4") == ["done 4", "grant 2"]
    assert play.end("2") == ["done 2", "grant 3"]


def test_a_higher_priority_has_its_busy_victim_drained_under_the_shared_lock() -> None:
    play = Playbook(
        resident("a", concurrency=2), absent("b", priority=1), total_mib=8000, lock="shared"
    )
    play.arrive("1", "a")
    play.arrive("2", "b")
    assert play.arrive("3", "a") == []
    assert play.end("1") == ["done 1", "unload a"]


def test_a_higher_priority_that_loads_or_has_its_hands_full_keeps_nobody_waiting() -> None:
    play = Playbook(
        resident("a", 100), absent("b", 100, priority=1), resident("c", 100), lock="shared"
    )
    play.arrive("1", "b")
    assert play.arrive("2", "a") == ["grant 2"]
    play.comes("b")
    play.arrive("3", "b")
    assert play.arrive("4", "c") == ["grant 4"]


def test_in_order_of_arrival_who_cannot_be_served_yet_holds_up_all_behind_it() -> None:
    play = Playbook(resident("a", 4000), absent("b", 4000), order="arrival")
    play.arrive("1", "b")
    assert play.arrive("2", "a") == []
    assert play.comes("b") == ["grant 1"]
    assert play.end("1") == ["done 1", "grant 2"]


def test_with_resident_first_nobody_waits_for_who_cannot_be_served_yet() -> None:
    play = Playbook(resident("a", 4000), absent("b", 4000))
    play.arrive("1", "b")
    assert play.arrive("2", "a") == ["grant 2"]


def test_only_those_who_share_a_gpu_are_held_up() -> None:
    play = Playbook(
        resident("a", gpus=(0,)),
        absent("b", gpus=(0,)),
        resident("c", gpus=(1,)),
        total_mib=(24576, 24576),
        order="arrival",
    )
    play.arrive("1", "b")
    assert play.arrive("2", "a") == []
    assert play.arrive("3", "c") == ["grant 3"]


class TestWhoMayLiveOnAnyGpu:
    """It holds up those on GPUs where it may find room, and nobody else."""

    def play(self, *, big_mib: int = 18000, pinned: bool = False) -> Playbook:
        play = Playbook(
            resident("small", gpus=(0,), pinned=pinned),
            resident("busy", 16000, gpus=(1,)),
            absent("big", big_mib),
            total_mib=(14000, 24576),
            order="arrival",
        )
        play.arrive("1", "busy")
        assert play.arrive("2", "big") == []
        return play

    def test_not_on_one_that_is_too_small(self) -> None:
        assert self.play().arrive("3", "small") == ["grant 3"]

    def test_not_on_one_where_too_much_stays(self) -> None:
        assert self.play(big_mib=8000, pinned=True).arrive("3", "small") == ["grant 3"]

    def test_not_on_the_others_while_the_only_one_is_lost(self) -> None:
        play = self.play()
        play.memory(0, 1, error="lost")
        assert play.arrive("3", "small") == ["grant 3"]

    def test_on_all_where_there_is_room_nowhere(self) -> None:
        play = Playbook(
            resident("a", 14000, gpus=(0,), can_unload=False),
            resident("b", 14000, gpus=(1,), can_unload=False),
            absent("big", 14000),
            total_mib=(24576, 24576),
        )
        assert prospects.where(play.state, play["big"], play.now) == {0, 1}


def test_where_too_many_are_in_memory_those_are_held_up_of_whom_one_has_to_leave() -> None:
    play = Playbook(
        resident("a", gpus=(0,), concurrency=2),
        absent("b", gpus=(1,)),
        total_mib=(24576, 24576),
        max_resident=1,
    )
    play.arrive("1", "a")
    play.arrive("2", "b")
    play.after(play.state.policy.max_overtake_s)
    assert play.arrive("3", "a") == []
    assert play.end("1") == ["done 1", "unload a"]


def test_a_resident_consumer_holds_up_only_the_gpu_it_lives_on() -> None:
    play = Playbook(
        resident("a"), resident("c", gpus=(1,)), total_mib=(24576, 24576), order="arrival"
    )
    play.arrive("1", "a")
    play.arrive("2", "a")
    assert play.arrive("3", "c") == ["grant 3"]


def test_who_is_held_up_holds_up_those_behind_it_in_turn() -> None:
    """c may not pass b, which is behind a on one GPU and before c on the other."""
    play = Playbook(
        resident("a", gpus=(0,)),
        resident("b", gpus=(0, 1)),
        resident("c", gpus=(1,)),
        total_mib=(24576, 24576),
        order="arrival",
    )
    play.arrive("1", "a")
    play.arrive("2", "a")
    play.arrive("3", "b")
    assert play.arrive("4", "c") == []
    play.end("1")
    assert play.end("2") == ["done 2", "grant 3"]
    assert play.end("3") == ["done 3", "grant 4"]


@pytest.mark.parametrize("prefetch", [True, False])
def test_exactly_one_at_a_time_and_one_in_memory_when_so_configured(*, prefetch: bool) -> None:
    """The serial scheduler of llama-swap: every other one is evicted first."""
    play = Playbook(
        *(absent(name, 100) for name in "ABC"), order="arrival", max_resident=1, prefetch=prefetch
    )
    for number, name in enumerate("ABCAB"):
        play.arrive(f"{number}", name)
    assert served(play) == "ABCAB"
    assert play.state.evictions == 4
    assert [c.name for c in play.state.consumers.values() if str(c.state) == "resident"] == ["B"]
