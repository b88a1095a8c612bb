from __future__ import annotations

import pytest

from mgpu.simulation.outcome import Activity, Interval, JobRun, Lanes, Result, percentile


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], 0.0), ([7.0], 7.0), (range(1, 21), 19), (range(1, 101), 95), ([3, 1, 2], 3)],
)
def test_p95_is_the_nearest_rank(values: list[float], expected: float) -> None:
    assert percentile(values, 0.95) == expected


def test_waits_are_summed_up() -> None:
    result = Result(runs=[JobRun(0, "a", 1.0, 2.0, 9.0), JobRun(1, "a", 1.0, 4.0, 9.0)])
    assert (result.mean_wait_s, result.p95_wait_s, result.longest_wait_s) == (2.0, 3.0, 3.0)


def test_nothing_served_is_no_wait() -> None:
    result = Result()
    assert (result.mean_wait_s, result.p95_wait_s, result.longest_wait_s) == (0.0, 0.0, 0.0)


def test_lanes_hold_what_took_time_and_end_with_the_run() -> None:
    lanes = Lanes()
    lanes.enter("a", Activity.LOADING, 1.0)
    lanes.enter("a", Activity.RESIDENT, 3.0)
    lanes.enter("a", Activity.COMPUTING, 3.0)
    lanes.enter("b", Activity.UNLOADING, 3.0)
    lanes.enter("b", None, 3.5)
    assert lanes.close(4.0) == {
        "a": [Interval(1.0, 3.0, Activity.LOADING), Interval(3.0, 4.0, Activity.COMPUTING)],
        "b": [Interval(3.0, 3.5, Activity.UNLOADING)],
    }
