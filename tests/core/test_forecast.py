"""Who computes when, and who is in memory when, as far as a waiting job is told."""

from __future__ import annotations

from tests.core.playbook import Playbook, absent, resident
from tests.core.test_estimates import known, queue


def test_a_job_past_its_usual_time_is_taken_to_last_as_long_again_as_it_is_over() -> None:
    play = known(Playbook(resident("a"), resident("b")), a=(5.0, None, None))
    play.arrive("1", "a")
    play.arrive("2", "b")
    play.after(30.0)
    assert queue(play) == {"2": 25.0}


def test_a_load_past_its_usual_time_is_too() -> None:
    play = known(Playbook(absent("a")), a=(1.0, 5.0, None))
    play.arrive("1", "a")
    play.after(7.0)
    assert queue(play) == {"1": 2.0}


class TestJobsSideBySide:
    def test_each_give_their_place_to_the_next(self) -> None:
        play = known(Playbook(resident("a", concurrency=3)), a=(20.0, None, None))
        for job in "123":
            play.arrive(job, "a")
            play.after(5.0)
        for job in "4567":
            play.arrive(job, "a")
        assert queue(play) == {"4": 5.0, "5": 10.0, "6": 15.0, "7": 25.0}

    def test_keep_their_gpu_from_others_until_the_last_is_through(self) -> None:
        play = known(
            Playbook(resident("a", concurrency=2), resident("b"), order="arrival"),
            a=(20.0, None, None),
            b=(3.0, None, None),
        )
        for job, consumer in (("1", "a"), ("2", "a"), ("3", "b"), ("4", "a")):
            play.arrive(job, consumer)
            play.after(4.0)
        assert queue(play) == {"3": 8.0, "4": 11.0}


class TestRoom:
    def test_under_a_shared_lock_is_there_when_somebody_is_through_who_can_leave(self) -> None:
        play = known(
            Playbook(resident("a"), resident("b"), absent("c"), total_mib=16000, lock="shared"),
            a=(20.0, 10.0, 1.0),
            b=(30.0, 10.0, 1.0),
            c=(5.0, 10.0, 1.0),
        )
        for job, consumer in (("1", "a"), ("2", "b"), ("3", "a"), ("4", "c")):
            play.arrive(job, consumer)
        assert queue(play) == {"3": 20.0, "4": 41.0}

    def test_costs_nobody_else_a_load_when_one_is_enough(self) -> None:
        play = known(
            Playbook(
                resident("a"), resident("b"), absent("c"),
                total_mib=16000, prefetch=True, order="arrival",
            ),
            a=(10.0, 5.0, 1.0), b=(10.0, 5.0, 1.0), c=(10.0, 5.0, 1.0),
        )  # fmt: skip
        for job, consumer in (("1", "a"), ("2", "b"), ("3", "c"), ("4", "b")):
            play.arrive(job, consumer)
        assert queue(play) == {"2": 10.0, "3": 20.0, "4": 30.0}

    def test_is_not_made_of_one_that_has_just_been_loaded(self) -> None:
        play = known(
            Playbook(absent("a"), absent("b"), total_mib=8000, min_resident_s=60.0),
            a=(2.0, 5.0, 1.0),
            b=(2.0, 5.0, 1.0),
        )
        play.arrive("1", "a")
        play.comes("a")
        play.after(10.0)
        play.end("1")
        play.arrive("2", "b")
        assert queue(play) == {"2": 56.0}

    def test_is_made_of_one_to_come_when_it_has_been_there_for_long_enough(self) -> None:
        play = known(
            Playbook(absent("a"), absent("b"), total_mib=8000, min_resident_s=60.0),
            a=(2.0, 5.0, 1.0),
            b=(2.0, 5.0, 1.0),
        )
        play.arrive("1", "a")
        play.arrive("2", "b")
        assert queue(play) == {"1": 5.0, "2": 71.0}

    def test_is_not_there_while_too_many_are_resident_wherever_they_are(self) -> None:
        play = known(
            Playbook(
                resident("a", gpus=(0,)), resident("a2", gpus=(0,)), absent("b", gpus=(1,)),
                resident("own", gpus=(1,), vram_managed=True),
                total_mib=(24000, 24000), max_resident=2, prefetch=True, lock="shared",
            ),
            a=(10.0, 5.0, 1.0), a2=(20.0, 5.0, 1.0), b=(2.0, 5.0, 1.0),
        )  # fmt: skip
        for job, consumer in (("1", "a2"), ("2", "a"), ("3", "b")):
            play.arrive(job, consumer)
        assert queue(play) == {"3": 16.0}

    def test_is_rather_made_of_one_that_nobody_waits_for(self) -> None:
        play = known(
            Playbook(
                resident("a"), resident("b"), absent("c"),
                total_mib=16000, lock="shared", order="planned",
            ),
            a=(9.0, 5.0, 1.0), b=(4.0, 5.0, 1.0), c=(1.0, 2.0, 1.0),
        )  # fmt: skip
        for job, consumer in (("1", "a"), ("2", "b"), *((n, "b") for n in "345"), ("6", "c")):
            play.arrive(job, consumer)
        assert queue(play) == {"3": 4.0, "6": 12.0, "4": 8.0, "5": 12.0}

    def test_is_never_made_of_one_that_may_coexist(self) -> None:
        play = known(
            Playbook(
                resident("a"), resident("b"), absent("c", can_coexist_with=frozenset("b")),
                total_mib=16000, prefetch=True,
            ),
            a=(10.0, 5.0, 1.0), b=(1.0, 5.0, 1.0), c=(2.0, 5.0, 1.0),
        )  # fmt: skip
        play.arrive("1", "a")
        play.arrive("2", "c")
        assert queue(play) == {"2": 16.0}

    def test_that_victims_are_about_to_leave_is_counted_once(self) -> None:
        play = known(
            Playbook(
                resident("a", 4000), resident("idle", 8000), absent("b", 4000), absent("c", 4000),
                total_mib=12000, prefetch=True,
            ),
            a=(10.0, 5.0, 1.0), b=(2.0, 5.0, 1.0), c=(2.0, 5.0, 1.0),
        )  # fmt: skip
        for job, consumer in (("1", "a"), ("2", "b"), ("3", "c")):
            play.arrive(job, consumer)
        assert queue(play) == {"2": 10.0, "3": 12.0}


class TestSeveralGpus:
    def test_an_auto_placed_one_goes_where_there_can_be_room(self) -> None:
        play = known(
            Playbook(
                resident("p", 16000, gpus=(0,), pinned=True), resident("a", gpus=(1,)), absent("b"),
                total_mib=(16000, 12000),
            ),
            p=(1.0, 5.0, 1.0), a=(10.0, 5.0, 1.0), b=(2.0, 5.0, 1.0),
        )  # fmt: skip
        play.arrive("1", "a")
        play.arrive("2", "b")
        assert queue(play) == {"2": 16.0}

    def test_it_goes_where_nobody_has_to_leave(self) -> None:
        play = known(
            Playbook(
                resident("idle", 18000, gpus=(0,)), absent("x", 1000, gpus=(0,)), absent("b", 4000),
                total_mib=(20000, 8000), prefetch=True, max_parallel_loads=1,
            ),
            x=(2.0, 5.0, 1.0), b=(2.0, 5.0, 1.0),
        )  # fmt: skip
        play.arrive("1", "x")
        play.arrive("2", "b")
        assert queue(play) == {"1": 5.0, "2": 10.0}

    def test_it_goes_where_most_memory_is_left(self) -> None:
        play = known(
            Playbook(
                absent("x", 1000, gpus=(0,)), absent("b", 4000), absent("c", 6000, gpus=(0,)),
                total_mib=(9000, 16000), prefetch=True, max_parallel_loads=1,
            ),
            x=(2.0, 5.0, 1.0), b=(9.0, 5.0, 1.0), c=(2.0, 5.0, 1.0),
        )  # fmt: skip
        for job, consumer in (("1", "x"), ("2", "b"), ("3", "c")):
            play.arrive(job, consumer)
        assert queue(play) == {"1": 5.0, "2": 10.0, "3": 15.0}

    def test_in_order_of_arrival_nobody_begins_before_one_that_may_go_anywhere(self) -> None:
        play = known(
            Playbook(
                resident("a", gpus=(0,)), resident("b", gpus=(1,), concurrency=2), absent("c"),
                total_mib=(8000, 8000), order="arrival",
            ),
            a=(10.0, 5.0, 1.0), b=(20.0, 5.0, 1.0), c=(2.0, 5.0, 1.0),
        )  # fmt: skip
        for job, consumer in (("1", "a"), ("2", "b"), ("3", "c"), ("4", "b")):
            play.arrive(job, consumer)
        assert queue(play) == {"3": 16.0, "4": 10.0}

    def test_nor_is_loaded_before_it_has_room(self) -> None:
        play = known(
            Playbook(
                resident("a", gpus=(0,)), resident("b", gpus=(1,), pinned=True),
                absent("c"), absent("d", 2000),
                total_mib=(8000, 10000), order="arrival", prefetch=True,
            ),
            a=(10.0, 5.0, 1.0), b=(3.0, 5.0, 1.0), c=(2.0, 5.0, 1.0), d=(2.0, 5.0, 1.0),
        )  # fmt: skip
        for job, consumer in (("1", "a"), ("2", "b"), ("3", "c"), ("4", "d")):
            play.arrive(job, consumer)
        assert play.states()["d"] == "absent"
        assert queue(play) == {"3": 16.0, "4": 15.0}

    def test_nor_without_prefetch_before_it_computes(self) -> None:
        play = known(
            Playbook(
                resident("a", gpus=(0,)), absent("c"), absent("d", 2000),
                total_mib=(8000, 8000, 8000), order="arrival",
            ),
            a=(10.0, 5.0, 1.0), c=(2.0, 5.0, 1.0), d=(2.0, 3.0, 1.0),
        )  # fmt: skip
        for job, consumer in (("1", "a"), ("3", "c"), ("4", "d")):
            play.arrive(job, consumer)
        assert play.states() == {"a": "resident", "c": "loading", "d": "absent"}
        assert queue(play) == {"3": 5.0, "4": 8.0}

    def test_without_prefetch_one_after_the_other_is_loaded_on_a_gpu(self) -> None:
        play = known(
            Playbook(
                absent("a", gpus=(0,)), absent("b", gpus=(0,)), absent("c", gpus=(1,)),
                total_mib=(24000, 24000), lock="shared",
            ),
            a=(2.0, 5.0, 1.0), b=(2.0, 5.0, 1.0), c=(2.0, 5.0, 1.0),
        )  # fmt: skip
        for job, consumer in (("1", "a"), ("2", "b"), ("3", "c")):
            play.arrive(job, consumer)
        assert queue(play) == {"1": 5.0, "2": 10.0, "3": 5.0}
