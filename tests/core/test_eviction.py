from __future__ import annotations

from mgpu.core import eviction
from mgpu.core.model import Victims
from tests.core.playbook import Playbook, absent, resident


def names(play: Playbook) -> list[str]:
    return [consumer.name for consumer in eviction.ranked(play.state)]


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
