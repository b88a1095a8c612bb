"""In which order the waiting jobs can expect to begin."""

from __future__ import annotations

from typing import Any

from mgpu.core.model import ConsumerPolicy
from tests.core.playbook import Playbook, absent, resident
from tests.core.test_estimates import known


def consumers(play: Playbook) -> str:
    """Whose jobs are shown in the queue, in its order."""
    return " ".join(waiter.consumer for waiter in play.snapshot().queue)


def jobs(play: Playbook) -> list[str]:
    return [waiter.job for waiter in play.snapshot().queue]


def test_positions_are_those_of_arrival_where_that_is_the_order() -> None:
    play = Playbook(resident("a"), absent("b"), order="arrival")
    for job, consumer in (("0", "a"), ("1", "b"), ("2", "a"), ("3", "b")):
        play.arrive(job, consumer)
    assert jobs(play) == ["1", "2", "3"]


def test_they_put_residents_first_then_one_consumer_after_the_other() -> None:
    play = Playbook(resident("a"), absent("b"), absent("c"))
    for job, consumer in enumerate("abcbcacb"):
        play.arrive(str(job), consumer)
    assert consumers(play) == "a b b b c c c"


def test_positions_are_what_planned_would_choose() -> None:
    play = known(
        Playbook(resident("a"), resident("b"), absent("c"), absent("d"), order="planned"),
        a=(9.0, 1.0, 1.0),
        b=(1.0, 1.0, 1.0),
        c=(1.0, 20.0, 1.0),
        d=(1.0, 5.0, 1.0),
    )
    for job, consumer in enumerate("aacdbcb"):
        play.arrive(str(job), consumer)
    assert consumers(play) == "b b a d c c"


def test_they_put_the_overdue_before_everybody() -> None:
    play = Playbook(resident("a"), absent("b"), max_overtake_s=10.0)
    play.arrive("0", "a")
    play.arrive("1", "b")
    play.after(10.0)
    play.arrive("2", "a", priority=5)
    assert jobs(play) == ["1", "2"]


def crowded(*policies: ConsumerPolicy, **rules: Any) -> Playbook:
    """Room for two of three, under ``planned``; jobs take 2 s, loads 5 s."""
    play = Playbook(
        *policies or (resident("a"), absent("b"), absent("c")),
        order="planned",
        prefetch=True,
        total_mib=16000,
        **rules,
    )
    return known(play, **dict.fromkeys("abc", (2.0, 5.0, 1.0)))


def test_planned_fills_the_time_of_a_load_with_whoever_has_most_to_do() -> None:
    """``c`` gets the place of ``b`` as soon as that one is through, while ``a`` computes."""
    play = crowded()
    for number, consumer in enumerate("aabcaaaaa"):
        play.arrive(str(number), consumer)
    play.comes("b")
    assert consumers(play) == "b a a a c a a a"


def test_who_is_there_late_begins_late() -> None:
    play = crowded()
    play.arrive("0", "a")
    play.arrive("1", "b")
    play.arrive("2", "a")
    assert play.states()["b"] == "loading"
    assert consumers(play) == "a b"


def test_when_nobody_is_there_the_next_to_come_makes_room_for_itself() -> None:
    play = crowded(absent("a"), absent("b", 16000), absent("c"), max_parallel_loads=1)
    for number, consumer in enumerate("acb"):
        play.arrive(str(number), consumer)
    assert consumers(play) == "a c b"


def test_a_pinned_one_does_not_make_room() -> None:
    play = crowded(resident("a", pinned=True), absent("b", 16000), absent("c"))
    for number, consumer in enumerate("bc"):
        play.arrive(str(number), consumer)
    assert consumers(play)[-1] in "bc"


def test_a_job_that_will_be_overdue_comes_first_under_planned_too() -> None:
    play = crowded(resident("a"), resident("b"), absent("c"), max_overtake_s=10.0)
    play.arrive("0", "a")
    play.arrive("1", "b")
    play.after(4.0)
    for number in range(2, 8):
        play.arrive(str(number), "a")
    assert jobs(play).index("1") <= 4


def test_a_load_that_must_begin_for_an_overdue_job_is_the_first() -> None:
    play = crowded(
        resident("a", 16000), absent("b"), absent("c"), max_overtake_s=20.0, max_parallel_loads=1
    )
    play.arrive("0", "a")
    play.arrive("1", "b")
    play.after(19.0)
    for number in range(2, 6):
        play.arrive(str(number), "c")
    assert jobs(play)[0] == "1"


def test_a_higher_priority_takes_the_place_of_a_lower_one_that_may_leave() -> None:
    play = crowded(resident("a", 7000, pinned=True), resident("b", 9000), absent("c", 9000))
    play.arrive("0", "b")
    for number, consumer in enumerate("abcb", start=1):
        play.arrive(str(number), consumer, priority=5 * (consumer == "c"))
    assert jobs(play) == ["1", "3", "2", "4"]


def test_it_takes_no_place_where_that_is_not_enough() -> None:
    play = crowded(resident("a", 4000), resident("b", 12000), absent("c", 16000))
    play.arrive("0", "a")
    for number, consumer in enumerate("abc", start=1):
        priority = {"a": 0, "b": 9, "c": 5}[consumer]
        play.arrive(str(number), consumer, priority=priority)
    assert jobs(play) == ["2", "3", "1"]


def test_one_that_loads_for_nobody_any_more_gives_no_place_away() -> None:
    play = crowded(resident("a"), absent("b"), absent("c"))
    play.arrive("0", "a")
    play.arrive("1", "b")
    play.leave("1")
    for number, consumer in enumerate("aaaac", start=2):
        play.arrive(str(number), consumer, priority=5 * (consumer == "c"))
    assert play.states()["b"] == "loading"
    assert jobs(play) == ["6", "2", "3", "4", "5"]
