from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from mgpu.simulation import eager
from mgpu.simulation.engine import Conditions
from mgpu.simulation.outcome import Activity, Interval
from mgpu.simulation.workload import MIXES, Arrivals, make_trace
from tests.simulation.tiny import ABA, service, trace, waits


def test_it_never_evicts_who_has_jobs_waiting() -> None:
    result = eager.replay(trace(*ABA))
    # a loads 0-2, computes 2-4, leaves 4-5; b loads 5-7.
    assert waits(result) == [2.0, 6.5, 2.0]
    assert (result.loads, result.unloads, result.reload_s) == (2, 1, 5.0)


def test_loads_go_side_by_side_and_residents_compute_in_order_of_arrival() -> None:
    result = eager.replay(trace(*ABA, total_mib=(1200,)))
    # a loads 0-2, b 0.5-2.5; a computes 2-3, b 3-4, a 4-5.
    assert waits(result) == [2.0, 2.5, 3.0]


def test_loads_that_share_their_bandwidth_take_longer() -> None:
    result = eager.replay(trace(*ABA, total_mib=(1200,)), Conditions(shared_bandwidth=True))
    # a alone until 0.5, both at half speed until a is there at 3.5, b alone until 4.
    assert waits(result) == [3.5, 4.0, 4.5]


def test_it_loads_while_another_computes() -> None:
    result = eager.replay(
        trace((0.0, "a", 5.0), (1.0, "b", 1.0), total_mib=(1200,), resident=("a",)), lanes=True
    )
    assert waits(result) == [0.0, 4.0]
    assert result.lanes["b"] == [
        Interval(1.0, 3.0, Activity.LOADING),
        Interval(3.0, 5.0, Activity.RESIDENT),
        Interval(5.0, 6.0, Activity.COMPUTING),
    ]


def test_the_least_recently_used_idle_one_leaves() -> None:
    services = tuple(service(name, 500) for name in "abc")
    result = eager.replay(
        trace((0.0, "b", 1.0), (1.0, "a", 1.0), (5.0, "c", 1.0), services=services), lanes=True
    )
    # b arrived and ended first.
    assert [i.start_s for i in result.lanes["b"] if i.activity is Activity.UNLOADING] == [5.0]
    assert all(i.activity is not Activity.UNLOADING for i in result.lanes["a"])


def test_memory_that_comes_back_late_holds_the_load_up() -> None:
    assert waits(eager.replay(trace(*ABA), Conditions(memory_lag_s=0.5))) == [2.0, 7.0, 2.0]


def test_a_job_that_can_never_fit_is_refused() -> None:
    services = (service("a"), service("huge", 2000))
    result = eager.replay(trace((0.0, "huge", 1.0), (0.0, "a", 1.0), services=services))
    assert (result.refused, waits(result)) == (1, [2.0])


def test_it_is_defined_for_one_gpu() -> None:
    with pytest.raises(ValueError, match="one GPU"):
        eager.replay(trace(*ABA, total_mib=(1000, 1000)))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mix", MIXES)
def test_every_job_is_served_once_one_at_a_time(mix: str, shared: bool) -> None:
    what = make_trace(MIXES[mix], Arrivals.BURSTS, utilisation=0.8, jobs=300, seed=5)
    result = eager.replay(what, Conditions(shared_bandwidth=shared), lanes=True)
    assert sorted(run.number for run in result.runs) == list(range(300))
    ordered = sorted(result.runs, key=lambda run: run.started_s)
    for before, after in pairwise(ordered):
        assert before.ended_s <= after.started_s + 1e-9


@pytest.mark.parametrize("mix", MIXES)
def test_what_is_resident_always_fits(mix: str) -> None:
    what = make_trace(MIXES[mix], Arrivals.BURSTS, utilisation=0.8, jobs=300, seed=5)
    what = replace(what, cushion_mib=1000)
    changes = [
        (at_s, order, sign * what.services[name].footprint_mib)
        for name, lane in eager.replay(what, lanes=True).lanes.items()
        for interval in lane
        for at_s, order, sign in ((interval.start_s, 1, +1), (interval.end_s, 0, -1))
    ]
    held_mib = 0
    for _, _, change_mib in sorted(changes):
        held_mib += change_mib
        assert held_mib <= what.total_mib[0] - 1000
