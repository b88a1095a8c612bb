"""When a waiting job can expect to begin."""

from __future__ import annotations

import pytest

from mgpu.core.model import Outcome
from tests.core.playbook import Playbook, absent, resident


def known(play: Playbook, **seconds: tuple[float | None, float | None, float | None]) -> Playbook:
    """As if jobs, loads and unloads of these consumers had been measured."""
    for name, (job_s, load_s, unload_s) in seconds.items():
        averages = play[name].averages
        averages.job.seconds, averages.load.seconds, averages.unload.seconds = (
            job_s,
            load_s,
            unload_s,
        )
    return play


def queue(play: Playbook) -> dict[str, float | None]:
    """Jobs in the order shown, and when each can expect to begin."""
    return {waiter.job: waiter.eta_s for waiter in play.snapshot().queue}


def retry_s(play: Playbook, job: str) -> float | None:
    refusal = play.ended[job].refusal
    assert refusal is not None
    assert refusal.code == "queue-full"
    return refusal.retry_after_s


class TestMeasuring:
    def test_takes_jobs_that_were_done(self) -> None:
        play = Playbook(resident("a"))
        play.use("a")
        assert play["a"].averages.job.seconds == 1.0

    def test_leaves_out_jobs_that_were_not(self) -> None:
        play = Playbook(resident("a"))
        play.arrive("1", "a")
        play.after(5.0)
        play.end("1", Outcome.CANCELLED)
        play.load("2", "a")
        assert play["a"].averages.job.seconds is None

    def test_takes_loads_and_unloads_that_succeeded(self) -> None:
        play = Playbook(absent("a"))
        play.arrive("1", "a")
        play.after(1.0)
        play.load_fails("a")
        assert play["a"].averages.load.seconds is None
        play.after(3.0)
        play.comes("a")
        play.end("1")
        play.unload_by_hand("a")
        play.after(0.5)
        play.leaves("a")
        assert play["a"].averages.load.seconds == 3.0
        assert play["a"].averages.unload.seconds == 0.5

    def test_takes_nothing_from_a_load_that_nobody_can_time(self) -> None:
        play = Playbook(absent("a", can_load=False))
        play.arrive("1", "a")
        assert play["a"].averages.load.seconds is None


def test_before_anything_was_measured_there_is_no_estimate() -> None:
    play = Playbook(resident("a"), absent("b"))
    play.arrive("1", "a")
    play.arrive("2", "a")
    play.arrive("3", "b")
    assert queue(play) == {"2": None, "3": None}


def test_each_waits_for_the_rest_of_the_running_job_and_those_before_it() -> None:
    play = known(Playbook(resident("a")), a=(10.0, None, None))
    for job in "123":
        play.arrive(job, "a")
    play.after(4.0)
    assert queue(play) == {"2": 6.0, "3": 16.0}
    play.after(6.0)
    assert queue(play) == {"2": 0.0, "3": 10.0}


def test_what_one_has_not_shown_is_taken_from_the_others() -> None:
    play = known(Playbook(resident("a"), resident("b")), a=(10.0, None, None))
    play.arrive("1", "b")
    play.arrive("2", "b")
    assert queue(play) == {"2": 10.0}


def test_jobs_side_by_side_pass_more_quickly() -> None:
    play = known(Playbook(resident("a", concurrency=2)), a=(10.0, None, None))
    for job in "12345":
        play.arrive(job, "a")
    assert queue(play) == {"3": 10.0, "4": 10.0, "5": 20.0}


def test_one_that_has_to_be_loaded_begins_after_its_load() -> None:
    play = known(Playbook(resident("a"), absent("b")), a=(10.0, 3.0, 1.0), b=(2.0, 5.0, None))
    play.arrive("1", "a")
    play.arrive("2", "b")
    play.arrive("3", "b")
    assert queue(play) == {"2": 15.0, "3": 17.0}


def test_one_that_does_not_fit_beside_begins_after_an_unload_as_well() -> None:
    play = known(
        Playbook(resident("a"), absent("b"), total_mib=8000, order="arrival"),
        a=(10.0, 3.0, 1.0),
        b=(2.0, 5.0, None),
    )
    for job, consumer in (("1", "a"), ("2", "b"), ("3", "a")):
        play.arrive(job, consumer)
    assert queue(play) == {"2": 16.0, "3": 22.0}


def test_who_may_not_leave_is_not_taken_to() -> None:
    play = known(
        Playbook(resident("p", 4000, pinned=True), resident("a"), absent("b"), total_mib=12000),
        p=(1.0, None, None),
        a=(10.0, 3.0, 1.0),
        b=(2.0, 5.0, None),
    )
    play.arrive("1", "a")
    play.arrive("2", "b")
    play.arrive("3", "p")
    assert queue(play) == {"3": 10.0, "2": 17.0}


def test_a_load_under_way_has_only_its_rest_to_go() -> None:
    play = known(Playbook(absent("a")), a=(10.0, 5.0, None))
    play.arrive("1", "a")
    play.arrive("2", "a")
    play.after(2.0)
    assert queue(play) == {"1": 3.0, "2": 13.0}


def test_room_that_is_being_made_counts_from_when_it_began() -> None:
    play = known(Playbook(resident("a"), absent("b"), total_mib=8000), b=(1.0, 5.0, 1.0))
    play.arrive("1", "b")
    play.after(0.5)
    assert queue(play) == {"1": 5.5}


def test_one_that_loads_with_its_first_job_needs_no_load() -> None:
    play = known(Playbook(resident("a"), absent("b", can_load=False)), a=(10.0, None, None))
    play.arrive("1", "a")
    play.arrive("2", "b")
    assert queue(play) == {"2": 10.0}


def test_a_load_that_nobody_has_timed_leaves_the_rest_open() -> None:
    play = known(Playbook(resident("a"), absent("b")), a=(10.0, None, None))
    play.arrive("1", "a")
    play.arrive("2", "b")
    assert queue(play) == {"2": None}


def test_a_load_under_way_that_nobody_has_timed_leaves_the_rest_open_too() -> None:
    play = known(Playbook(absent("a")), a=(10.0, None, None))
    play.arrive("1", "a")
    assert queue(play) == {"1": None}


def test_an_auto_placed_one_goes_where_it_can_begin_first() -> None:
    play = known(
        Playbook(resident("a", gpus=(0,)), absent("b"), total_mib=[24576, 24576]),
        a=(10.0, 3.0, 1.0),
        b=(2.0, 5.0, None),
    )
    play.arrive("1", "a")
    play.arrive("2", "b")
    assert queue(play) == {"2": 5.0}


def test_under_a_shared_lock_nobody_waits_for_another_consumer() -> None:
    play = known(
        Playbook(resident("a"), resident("b"), lock="shared"),
        a=(10.0, None, None),
        b=(4.0, None, None),
    )
    for job, consumer in (("1", "a"), ("2", "b"), ("3", "b"), ("4", "a")):
        play.arrive(job, consumer)
    assert queue(play) == {"3": 4.0, "4": 10.0}


def test_before_any_gpu_was_read_estimates_rest_on_what_is_known() -> None:
    play = known(Playbook(absent("a"), blind=True), a=(10.0, 5.0, None))
    play.arrive("1", "a")
    assert queue(play) == {"1": 5.0}


class TestLoadsBesideComputing:
    def test_are_over_when_the_running_job_is(self) -> None:
        play = known(
            Playbook(resident("a"), absent("b"), prefetch=True),
            a=(10.0, 3.0, 1.0),
            b=(2.0, 5.0, None),
        )
        for job, consumer in (("1", "a"), ("2", "b"), ("3", "b")):
            play.arrive(job, consumer)
        assert queue(play) == {"2": 10.0, "3": 12.0}

    def test_are_so_many_at_once(self) -> None:
        names = ("b", "c", "d", "e")
        play = known(
            Playbook(
                resident("a"), *(absent(n, 1000) for n in names),
                prefetch=True, max_parallel_loads=2, order="arrival",
            ),
            a=(1.0, 3.0, 1.0), **dict.fromkeys(names, (1.0, 5.0, 1.0)),
        )  # fmt: skip
        for job, consumer in enumerate("abcde"):
            play.arrive(str(job), consumer)
        assert queue(play) == {"1": 5.0, "2": 6.0, "3": 10.0, "4": 11.0}

    def test_begin_when_idle_ones_have_left_for_them(self) -> None:
        play = known(
            Playbook(
                resident("a"), resident("other", 4000), resident("idle"),
                resident("kept", 4000, pinned=True),
                absent("b"), absent("c"),
                total_mib=24000, prefetch=True, max_parallel_loads=1, order="arrival",
            ),
            a=(20.0, 3.0, 1.0), b=(2.0, 5.0, None), c=(2.0, 5.0, None),
        )  # fmt: skip
        for job, consumer in (("1", "a"), ("2", "b"), ("3", "c")):
            play.arrive(job, consumer)
        # idle leaves for b within its second, other is not enough for c: that waits for a too.
        assert queue(play) == {"2": 20.0, "3": 26.0}

    def test_wait_for_those_that_compute_where_there_is_no_other_room(self) -> None:
        play = known(
            Playbook(resident("a"), absent("b"), total_mib=8000, prefetch=True, order="arrival"),
            a=(10.0, 3.0, 1.0),
            b=(2.0, 5.0, None),
        )
        for job, consumer in (("1", "a"), ("2", "b"), ("3", "a")):
            play.arrive(job, consumer)
        assert queue(play) == {"2": 16.0, "3": 22.0}

    def test_hold_up_one_that_loads_with_its_first_job(self) -> None:
        play = known(
            Playbook(absent("a"), absent("b", can_load=False), prefetch=True, max_parallel_loads=1),
            a=(1.0, 5.0, None),
            b=(2.0, None, None),
        )
        play.arrive("1", "a")
        play.arrive("2", "b", priority=1)
        play.arrive("3", "b", priority=1)
        assert queue(play) == {"2": 5.0, "3": 7.0, "1": 9.0}


class TestAFullQueue:
    def test_names_the_time_until_a_place_is_free(self) -> None:
        play = known(Playbook(resident("a", max_queue=1)), a=(10.0, None, None))
        for job in "123":
            play.arrive(job, "a")
        assert retry_s(play, "3") == 10.0

    @pytest.mark.parametrize(("job_s", "told_s"), [(0.1, 1.0), (500.0, 60.0), (None, 2.0)])
    def test_names_from_a_second_to_a_minute(self, job_s: float | None, told_s: float) -> None:
        play = known(Playbook(resident("a"), max_queue=1), a=(job_s, None, None))
        for job in "123":
            play.arrive(job, "a")
        assert retry_s(play, "3") == told_s
