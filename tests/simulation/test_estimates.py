"""What waiting jobs are told, compared with when they begin in the simulation."""

from __future__ import annotations

from statistics import median

import pytest

from mgpu.config.model import SchedulerConfig
from mgpu.core import views
from mgpu.core.model import Order
from mgpu.core.state import State
from mgpu.simulation import engine, policies, workload
from mgpu.simulation.workload import Arrival, Arrivals, Trace

JOBS = 150

MOSTLY_OFF_BY = 2
"""Places."""


def backlog_after_a_warm_up(mix: str) -> Trace:
    """One job of each service to learn from, then all the others at once."""
    made = workload.make_trace(
        workload.MIXES[mix], Arrivals.BACKLOG, utilisation=0.5, jobs=40, seed=1
    )
    mean_s = {demand.service.name: demand.job_s for demand in workload.MIXES[mix].demands}
    first = [Arrival(60.0 * n, name, mean_s[name]) for n, name in enumerate(sorted(mean_s))]
    rest = [
        Arrival(1000.0, arrival.consumer, mean_s[arrival.consumer]) for arrival in made.arrivals
    ]
    return Trace(total_mib=made.total_mib, services=made.services, arrivals=(*first, *rest))


@pytest.mark.parametrize("order", list(Order))
@pytest.mark.parametrize("arrivals", [Arrivals.POISSON, Arrivals.BURSTS])
def test_half_of_all_estimates_are_off_by_less_than_a_third_of_the_usual_wait(
    order: Order, arrivals: Arrivals
) -> None:
    """Although nobody knows who is to come, nor how long a job will take (sigma 0.5)."""
    trace = workload.make_trace(
        workload.MIXES["eight"], arrivals, utilisation=0.5, jobs=JOBS, seed=1
    )
    told_s: dict[int, float] = {}

    def look(state: State, at: float, job: str) -> None:
        for waiter in views.take(state, at).queue:
            if waiter.job == job and waiter.eta_s is not None:
                told_s[int(job)] = at + waiter.eta_s

    rules = policies.rules(SchedulerConfig(order=order), trace)
    runs = {run.number: run for run in engine.replay(trace, rules, look=look).runs}

    waited = [run for run in runs.values() if run.wait_s > 0]
    errors_s = [abs(told_s[n] - runs[n].started_s) for n in told_s]
    assert len(errors_s) > 0.9 * len(waited)
    assert median(errors_s) < median(run.wait_s for run in waited) / 3


@pytest.mark.parametrize("order", list(Order))
@pytest.mark.parametrize("mix", sorted(workload.MIXES))
def test_positions_in_a_backlog_are_about_those_in_which_the_jobs_begin(
    order: Order, mix: str
) -> None:
    trace = backlog_after_a_warm_up(mix)
    positions: dict[int, int] = {}

    def look(state: State, at: float, job: str) -> None:
        if int(job) == len(trace.arrivals) - 1:
            positions.update({int(w.job): w.position for w in views.take(state, at).queue})

    rules = policies.rules(SchedulerConfig(order=order, max_overtake_s=10_000), trace)
    result = engine.replay(trace, rules, look=look)

    begun = [run.number for run in sorted(result.runs, key=lambda run: run.started_s)]
    order_of = {number: rank for rank, number in enumerate(n for n in begun if n in positions)}
    off_by = [abs(order_of[number] - (positions[number] - 1)) for number in positions]
    assert len(positions) >= 30
    assert median(off_by) <= MOSTLY_OFF_BY
