from __future__ import annotations

from typing import Any

from mgpu.core import eviction
from mgpu.core.model import Victims
from tests.core.playbook import Playbook, absent, resident

PLANNED: dict[str, Any] = {"order": "planned", "prefetch": True}


def names(play: Playbook) -> list[str]:
    return [
        consumer.name for consumer in eviction.ranked(play.state, play.state.consumers.values())
    ]


def by_cost(*consumers: object, **policy: object) -> Playbook:
    return Playbook(*consumers, victims=Victims.RELOAD_COST, **policy)  # type: ignore[arg-type]


def load(play: Playbook, consumer: str, seconds: float) -> None:
    job = f"load {consumer} at {play.now}"
    play.arrive(job, consumer)
    play.after(seconds)
    play.comes(consumer)
    play.end(job)


def test_lru_takes_whoever_was_used_longest_ago() -> None:
    play = Playbook(resident("a", 1000), resident("b", 1000), resident("c", 1000))
    for name in ("b", "a", "c"):
        play.use(name)
    assert names(play) == ["b", "a", "c"]


def test_reload_cost_takes_whoever_is_cheapest_to_bring_back_for_its_size() -> None:
    play = by_cost(absent("quick", 4096), absent("slow", 4096))
    load(play, "slow", 8.0)
    load(play, "quick", 1.0)
    assert names(play) == ["quick", "slow"]


def test_a_large_one_is_cheaper_to_bring_back_per_gib() -> None:
    play = by_cost(absent("large", 8192), absent("small", 2048))
    load(play, "small", 4.0)
    load(play, "large", 4.0)
    assert names(play) == ["large", "small"]


def test_cost_protects_nobody_for_ever() -> None:
    """With every eviction the floor rises, until what is not used any more is the cheapest."""
    play = by_cost(absent("dear", 4096), absent("x", 4096), absent("y", 4096), total_mib=8192)
    load(play, "dear", 4.0)
    load(play, "x", 1.0)
    victims = []
    for turn in range(10):
        target = "y" if turn % 2 == 0 else "x"
        if play.states()["dear"] != "resident":
            break
        play.arrive(f"job {turn}", target)
        victim = next(n for n, state in play.states().items() if state == "unloading")
        victims.append(victim)
        play.leaves(victim)
        play.after(1.0)
        play.comes(target)
        play.end(f"job {turn}")
    assert "dear" in victims
    assert victims[0] != "dear"


def asked_for(play: Playbook, **times: int) -> Playbook:
    for consumer, count in times.items():
        for _ in range(count):
            play.use(consumer)
    return play


def test_planned_evicts_who_is_least_asked_for_by_what_a_reload_takes() -> None:
    play = Playbook(resident("often"), resident("rarely"), absent("c"), total_mib=16000, **PLANNED)
    asked_for(play, often=5, rarely=2)
    assert play.arrive("1", "c") == ["unload rarely"]


def test_planned_weighs_sets_and_not_one_after_the_other() -> None:
    """One large consumer may be dearer than each of two small ones and cheaper than both."""
    play = Playbook(
        resident("large", 8000),
        resident("a", 4000),
        resident("b", 4000),
        absent("c"),
        total_mib=16000,
        **PLANNED,
    )
    asked_for(play, large=5, a=6, b=6)
    assert play.arrive("1", "c") == ["unload large"]


def test_planned_evicts_more_than_one_where_that_is_cheaper() -> None:
    play = Playbook(
        resident("large", 8000),
        resident("a", 4000),
        resident("b", 4000),
        absent("c"),
        total_mib=16000,
        **PLANNED,
    )
    asked_for(play, a=2, b=2, large=6)
    assert play.arrive("1", "c") == ["unload a", "unload b"]


def test_arrivals_count_the_less_the_longer_ago_they_were() -> None:
    play = Playbook(resident("past"), resident("now"), absent("c"), total_mib=16000, **PLANNED)
    asked_for(play, past=5)
    play.after(1200.0)
    asked_for(play, now=2)
    assert play.arrive("1", "c") == ["unload past"]


def test_jobs_that_find_their_consumer_at_work_count_for_nothing() -> None:
    """They would not have cost a load."""
    play = Playbook(resident("a"), resident("b"), absent("c"), total_mib=16000, **PLANNED)
    for number in range(9):
        play.arrive(f"{number}", "a")
    for number in range(9):
        play.after(0.1)
        play.end(f"{number}")
    asked_for(play, b=2)
    assert play.arrive("1", "c") == ["unload a"]


def test_of_equals_planned_evicts_as_it_is_told_to() -> None:
    play = Playbook(resident("a"), resident("b"), absent("c"), total_mib=16000, **PLANNED)
    assert play.arrive("1", "c") == ["unload a"]


def test_of_very_many_planned_evicts_those_that_cost_least_for_their_room() -> None:
    names = [f"c{n}" for n in range(9)]
    play = Playbook(
        *(resident(name, 1000) for name in names), absent("c"), total_mib=9000, **PLANNED
    )
    asked_for(play, **{name: 2 if name == "c4" else 1 for name in names})
    assert play.arrive("1", "c") == [f"unload {name}" for name in names if name != "c4"]
