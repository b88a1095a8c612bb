"""Whether loads hold each other up shows in how long they take."""

from __future__ import annotations

import pytest

from tests.core.playbook import Playbook, absent, resident


def loading(**policy: object) -> Playbook:
    rules = {"order": "planned", "prefetch": True} | policy
    return Playbook(absent("a"), absent("b"), absent("c"), resident("r"), **rules)  # type: ignore[arg-type]


def alone(play: Playbook, consumer: str, seconds: float) -> None:
    """One load while no other goes on; then the consumer is gone again."""
    play.arrive(f"{consumer} {play.now}", consumer)
    play.after(seconds)
    play.comes(consumer)
    play.end(f"{consumer} {play.now - seconds}")
    gone(play, consumer)


def gone(play: Playbook, consumer: str) -> None:
    play.unload_by_hand(consumer)
    play.leaves(consumer)


def together(play: Playbook, seconds: float, number: int = 0) -> None:
    """Two loads that begin and end together."""
    play.arrive(f"a {number}", "a")
    play.arrive(f"b {number}", "b")
    play.after(seconds)
    play.comes("a")
    play.comes("b")
    play.end(f"a {number}")
    play.end(f"b {number}")
    gone(play, "a")
    gone(play, "b")


def side_by_side(play: Playbook) -> int:
    play.arrive("one", "a")
    play.arrive("two", "b")
    return len(play.state.swaps)


def taught(seconds: float, **policy: object) -> Playbook:
    """Each takes 4 s alone; together they have taken so long, twice."""
    play = loading(**policy)
    alone(play, "a", 4.0)
    alone(play, "b", 4.0)
    for number in range(2):
        together(play, seconds, number)
    return play


def test_loads_that_do_not_hold_each_other_up_go_on_side_by_side() -> None:
    assert side_by_side(taught(4.0)) == 2


def test_loads_that_share_their_bandwidth_go_one_after_the_other() -> None:
    play = taught(8.0)
    assert side_by_side(play) == 1
    play.comes("a")
    assert play.state.swaps.keys() == {"b"}


def test_one_slow_load_says_little() -> None:
    play = loading()
    alone(play, "a", 4.0)
    alone(play, "b", 4.0)
    together(play, 8.0)
    assert side_by_side(play) == 2


@pytest.mark.parametrize("order", ["arrival", "resident-first"])
def test_the_other_orders_load_as_many_at_once_as_they_may(order: str) -> None:
    assert side_by_side(taught(8.0, order=order)) == 2


def test_what_company_cost_a_load_is_not_taken_for_its_own_time() -> None:
    assert taught(8.0)["a"].averages.load.seconds == 4.0


def test_the_first_load_alone_replaces_what_was_guessed_from_loads_in_company() -> None:
    play = loading()
    together(play, 8.0)
    assert play["a"].averages.load.seconds == 8.0
    alone(play, "a", 4.0)
    assert play["a"].averages.load.seconds == 4.0
