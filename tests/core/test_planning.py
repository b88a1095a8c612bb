from __future__ import annotations

from typing import Any

import pytest

from mgpu.core import planning
from mgpu.core.model import ConsumerPolicy
from tests.core.playbook import Playbook, absent, resident


def planned(*consumers: object, **policy: object) -> Playbook:
    return Playbook(*consumers, order="planned", prefetch=True, **policy)  # type: ignore[arg-type]


def serve(play: Playbook, consumer: str, seconds: float, times: int = 1) -> None:
    """Let jobs of a consumer be seen to take this long."""
    for number in range(times):
        job = f"{consumer} {number} at {play.now}"
        play.arrive(job, consumer)
        play.after(seconds)
        play.end(job)


def test_of_the_residents_the_one_with_the_short_jobs_goes_first() -> None:
    play = planned(resident("short"), resident("long"), resident("other"))
    serve(play, "short", 1.0)
    serve(play, "long", 10.0)
    play.arrive("0", "other")
    play.arrive("l", "long")
    play.arrive("s", "short")
    assert play.end("0") == ["done 0", "grant s"]


def test_a_long_job_that_has_waited_in_proportion_goes_before_a_fresh_short_one() -> None:
    play = planned(resident("short"), resident("long"), resident("other"))
    serve(play, "short", 1.0)
    serve(play, "long", 3.0)
    play.arrive("0", "other")
    play.arrive("l", "long")
    play.after(20.0)
    play.arrive("s", "short")
    assert play.end("0") == ["done 0", "grant l"]


def test_jobs_known_to_take_the_same_go_in_order_of_arrival() -> None:
    play = planned(resident("a"), resident("b"), resident("other"))
    play.arrive("0", "other")
    play.arrive("1", "b")
    play.after(1.0)
    play.arrive("2", "a")
    assert play.end("0") == ["done 0", "grant 1"]


def test_one_of_whom_nothing_is_known_is_taken_to_be_like_the_others() -> None:
    play = planned(resident("known"), resident("new"), resident("other"))
    serve(play, "known", 5.0)
    serve(play, "other", 5.0)
    play.arrive("0", "other")
    play.arrive("1", "new")
    play.after(1.0)
    play.arrive("2", "known")
    assert play.end("0") == ["done 0", "grant 1"]


def test_the_load_that_most_jobs_wait_for_in_proportion_comes_first() -> None:
    play = planned(
        absent("few", 8000), absent("many", 8000), absent("now", 1000), max_parallel_loads=1
    )
    play.arrive("0", "now")
    play.arrive("1", "few")
    for number in range(5):
        play.arrive(f"m{number}", "many")
    assert play.comes("now") == ["grant 0", "load many"]


def test_a_consumer_that_loads_faster_comes_first() -> None:
    play = planned(
        absent("large", 12000), absent("small", 2000), absent("now", 1000), max_parallel_loads=1
    )
    play.arrive("0", "now")
    play.arrive("1", "large")
    play.arrive("2", "small")
    assert play.comes("now") == ["grant 0", "load small"]


def test_what_was_measured_of_a_load_replaces_the_guess_by_its_size() -> None:
    play = planned(absent("a", 2048))
    assert planning.load_s(play["a"]) == pytest.approx(1.0)
    play.arrive("1", "a")
    play.after(7.0)
    play.comes("a")
    assert planning.load_s(play["a"]) == pytest.approx(7.0)


def test_nobody_is_evicted_whom_the_queue_still_needs() -> None:
    play = planned(resident("a"), resident("idle"), absent("c"), total_mib=16000)
    play.use("idle")
    play.arrive("1", "a")
    play.arrive("2", "a")
    assert play.arrive("3", "c") == ["unload idle"]


def test_one_that_needs_less_finds_room_where_one_that_kept_more_does_not() -> None:
    """A load needs its whole footprint as free, also what is taken by its own leftover."""
    play = planned(
        resident("busy", 8000), absent("kept", 8000, residual_mib=6000), absent("small", 5000),
        total_mib=20000, free_mib=5500,
    )  # fmt: skip
    play.arrive("1", "busy")
    assert play.arrive("2", "kept") == []
    assert play.arrive("3", "kept") == []
    assert play.arrive("4", "small") == ["load small"]


def test_a_load_begins_early_enough_to_be_over_when_its_job_becomes_overdue() -> None:
    """It may then take the place of who has jobs waiting that came later."""
    play = planned(resident("a"), resident("b"), absent("c"), total_mib=16000, max_overtake_s=20)
    play.arrive("1", "a")
    play.arrive("2", "b")
    assert play.arrive("3", "c") == []
    play.arrive("4", "b")
    assert play.leave("2") == ["cancelled 2: client-left"]
    play.after(20 - planning.load_s(play["c"]) - 0.1)
    assert play.arrive("5", "b") == []
    play.after(0.2)
    assert play.arrive("6", "b") == ["unload b"]


def test_it_does_not_take_the_place_of_who_has_waited_longer() -> None:
    play = planned(resident("a"), resident("b"), absent("c"), total_mib=16000, max_overtake_s=20)
    play.arrive("1", "a")
    play.arrive("2", "b")
    play.arrive("3", "c")
    play.after(20 - planning.load_s(play["c"]) + 0.1)
    assert play.arrive("4", "b") == []


def long_ones(**policy: object) -> Playbook:
    """``busy`` computes; jobs of ``slow`` wait, of 10 s each; ``quick`` finds no room."""
    play = planned(
        resident("busy"), resident("slow"), absent("quick", 1000), total_mib=16000, **policy
    )
    serve(play, "slow", 10.0)
    serve(play, "busy", 5.0)
    play.arrive("b", "busy")
    return play


def test_a_resident_gives_way_when_all_together_wait_less_then() -> None:
    play = long_ones()
    play.arrive("s1", "slow")
    play.arrive("s2", "slow")
    play.after(1.0)
    assert play.arrive("q1", "quick") == []
    assert play.arrive("q2", "quick") == ["unload slow"]


def test_it_does_not_give_way_to_jobs_that_came_as_early() -> None:
    play = long_ones()
    play.arrive("s1", "slow")
    play.arrive("q1", "quick")
    assert play.arrive("q2", "quick") == []


def test_it_does_not_give_way_to_jobs_of_a_lower_priority() -> None:
    play = long_ones()
    play.arrive("s1", "slow", priority=1)
    play.after(1.0)
    play.arrive("q1", "quick")
    assert play.arrive("q2", "quick") == []


@pytest.mark.parametrize("max_overtake_s", [1.0, 5.0])
def test_it_does_not_give_way_when_it_is_overdue_or_will_soon_be(max_overtake_s: float) -> None:
    play = long_ones(max_overtake_s=max_overtake_s)
    play.arrive("s1", "slow")
    play.after(2.0)
    play.arrive("q1", "quick")
    assert play.arrive("q2", "quick") == []


def test_it_does_not_give_way_to_jobs_that_were_there_when_it_began_to_load() -> None:
    """Else two consumers could drive each other out over the same jobs for ever."""
    play = planned(resident("busy"), absent("slow"), absent("quick", 1000), total_mib=16000)
    serve(play, "busy", 5.0)
    play.arrive("b", "busy")
    assert play.arrive("s1", "slow") == ["load slow"]
    play.arrive("q1", "quick")
    play.arrive("q2", "quick")
    play["slow"].averages.job.add(30.0)
    assert play.comes("slow") == []
    assert play.states()["slow"] == "resident"


def overdue_and_loading() -> Playbook:
    """A job of ``slow`` is overdue, and its load is over in 4 s; ``quick`` computes for 2 s."""
    play = planned(resident("quick", 1000), absent("slow"), resident("new", 10), max_overtake_s=5)
    serve(play, "quick", 2.0)
    play.arrive("s0", "slow")
    play.after(10.0)
    play.comes("slow")
    play.end("s0")
    play.unload_by_hand("slow")
    play.leaves("slow")
    assert play.arrive("s1", "slow") == ["load slow"]
    play.after(6.0)
    return play


def test_while_an_overdue_one_loads_others_compute_that_are_through_by_then() -> None:
    play = overdue_and_loading()
    assert play.arrive("q1", "quick") == ["grant q1"]
    play.after(2.5)
    assert play.end("q1") == ["done q1"]
    assert play.arrive("q2", "quick") == []
    assert play.comes("slow") == ["grant s1"]


def test_of_whom_nothing_is_known_nobody_can_say_that_it_is_through_by_then() -> None:
    assert overdue_and_loading().arrive("n1", "new") == []


def test_when_a_load_takes_longer_than_it_should_nobody_overtakes_the_overdue() -> None:
    play = overdue_and_loading()
    play.after(5.0)
    assert play.arrive("q1", "quick") == []


def test_while_somebody_waits_for_room_the_one_that_is_through_first_goes_first() -> None:
    """Then it can leave, and the load goes on beside the other's jobs."""
    play = planned(resident("few"), resident("many"), absent("c"), total_mib=16000)
    serve(play, "few", 2.0)
    serve(play, "many", 2.0)
    play.arrive("0", "many")
    for number in range(3):
        play.arrive(f"m{number}", "many")
    play.after(0.5)
    play.arrive("f", "few")
    play.arrive("c", "c")
    assert play.end("0") == ["done 0", "grant f"]
    assert play.end("f") == ["done f", "grant m0", "unload few"]


def test_while_nobody_does_equal_jobs_go_in_order_of_arrival() -> None:
    play = planned(resident("few"), resident("many"), total_mib=16000)
    serve(play, "few", 2.0)
    serve(play, "many", 2.0)
    play.arrive("0", "many")
    play.arrive("m", "many")
    play.arrive("n", "many")
    play.after(0.5)
    play.arrive("f", "few")
    assert play.end("0") == ["done 0", "grant m"]


def batch(*others: ConsumerPolicy) -> Playbook:
    """``a`` came for three jobs, of which the first computes; a job of ``b`` is overdue."""
    total_mib = 8000 + sum(other.footprint_mib for other in others)
    play = planned(absent("a"), absent("b"), *others, total_mib=total_mib, max_overtake_s=10)
    assert play.arrive("a0", "a") == ["load a"]
    play.after(1.0)
    assert play.arrive("b", "b") == []
    play.after(8.0)
    play.arrive("a1", "a")
    play.arrive("a2", "a")
    assert play.comes("a") == ["grant a0"]
    play.after(3.0)
    return play


def test_before_an_overdue_job_gets_the_room_of_another_that_ones_batch_is_done() -> None:
    play = batch()
    assert play.end("a0") == ["done a0", "grant a1"]
    assert play.end("a1") == ["done a1", "grant a2"]
    assert play.end("a2") == ["done a2", "unload a"]
    assert play.leaves("a") == ["load b"]
    assert play.comes("b") == ["grant b"]


def test_who_comes_later_is_of_no_batch() -> None:
    play = batch()
    play.arrive("late", "a")
    play.end("a0")
    play.end("a1")
    assert play.end("a2") == ["done a2", "unload a"]


def test_a_batch_ends_for_the_overdue_where_somebody_urgent_has_come_to_it() -> None:
    """A consumer's first job is the one that counts, and that one is of no batch."""
    play = batch()
    play.arrive("urgent", "a", priority=9)
    assert play.end("a0") == ["done a0", "unload a"]


def test_jobs_of_who_was_there_all_along_are_of_no_batch() -> None:
    play = planned(resident("a"), absent("b"), total_mib=8000, max_overtake_s=10)
    for number in range(3):
        play.arrive(f"a{number}", "a")
    play.arrive("b", "b")
    play.after(10.0)
    # Those that came before it go before it.
    assert play.end("a0") == ["done a0", "grant a1"]
    assert play.end("a1") == ["done a1", "grant a2"]
    play.arrive("a3", "a")
    assert play.end("a2") == ["done a2", "unload a"]


def test_an_overdue_job_of_no_batch_waits_behind_one_without_room_and_holds_up_no_batch() -> None:
    play = batch(resident("there", 1000))
    play.arrive("t", "there")
    play.after(10.0)
    assert play.end("a0") == ["done a0", "grant a1"]
    assert play.end("a1") == ["done a1", "grant a2"]
    assert play.end("a2") == ["done a2", "unload a"]


def test_other_orders_know_no_batches() -> None:
    play = Playbook(absent("a"), absent("b"), total_mib=8000, max_overtake_s=10)
    for job in ("a0", "a1"):
        play.arrive(job, "a")
    play.arrive("b", "b")
    play.arrive("a2", "a")
    play.comes("a")
    play.after(10.0)
    assert play.end("a0") == ["done a0", "grant a1"]
    assert play.end("a1") == ["done a1", "unload a"]


def test_who_waits_behind_a_batch_on_one_gpu_holds_up_nobody_on_another() -> None:
    """``both`` lives on both GPUs and is not overdue; only GPU 0 has an overdue job."""
    one, two = (0,), (1,)
    play = planned(
        absent("a", gpus=one), absent("b", gpus=one), resident("other", 1000, gpus=two),
        resident("both", 2000, gpus=(0, 1)), total_mib=[9000, 9000], max_overtake_s=10,
    )  # fmt: skip
    play.arrive("a0", "a")
    play.after(1.0)
    play.arrive("b", "b")
    play.after(8.0)
    play.arrive("a1", "a")
    assert play.comes("a") == ["grant a0"]
    play.after(3.0)
    assert play.arrive("spanning", "both") == []
    assert play.arrive("o", "other") == ["grant o"]


class TestWhileNobodyMayLeaveYet:
    """``min_resident_s``: who has just come computes until it may leave, whoever waits for it."""

    def play(self, *others: ConsumerPolicy, **policy: Any) -> Playbook:
        rules: dict[str, Any] = {"order": "planned", "prefetch": True, "min_resident_s": 100.0}
        there = (absent("here"), absent("next", priority=5), *others)
        play = Playbook(*there, total_mib=10000, **(rules | policy))
        play.arrive("first", "here")
        play.comes("here")
        play.after(2.0)
        play.end("first")
        assert play.arrive("waits", "next") == []
        return play

    def test_a_job_that_is_over_by_then_does_not_wait_for_a_higher_priority(self) -> None:
        play = self.play()
        assert play.arrive("1", "here") == ["grant 1"]
        play.after(2.0)
        play.end("1")
        play.after(95.0)
        assert play.arrive("2", "here") == []
        assert play.after(1.0) == ["unload here"]

    def test_nor_for_one_that_is_overdue(self) -> None:
        play = self.play(max_overtake_s=10.0)
        play.after(20.0)
        assert play.arrive("1", "here") == ["grant 1"]

    def test_it_waits_where_somebody_else_may_leave_at_any_time(self) -> None:
        play = self.play(resident("other", 1000))
        play.probe("other", busy=True)
        assert play.arrive("1", "here") == []

    def test_one_that_may_leave_and_does_not_suffice_is_nobody_to_wait_for(self) -> None:
        play = self.play(resident("other", 1000))
        assert play.arrive("1", "here") == ["grant 1"]

    def test_who_never_leaves_is_not_waited_for(self) -> None:
        play = self.play(resident("fixed", 1000, can_unload=False))
        play.probe("fixed", busy=True)
        assert play.arrive("1", "here") == ["grant 1"]

    def test_another_order_does_not_look_ahead(self) -> None:
        assert self.play(order="resident-first").arrive("1", "here") == []
