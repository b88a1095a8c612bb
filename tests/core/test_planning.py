from __future__ import annotations

import pytest

from mgpu.core import planning
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
