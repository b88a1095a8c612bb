"""Nobody overtakes a job that has waited for ``max_overtake_s``, on any trace."""

from __future__ import annotations

import pytest

from mgpu.config.model import SchedulerConfig
from mgpu.core.jobs import Job
from mgpu.core.model import Order
from mgpu.core.waiting import Waiting
from mgpu.simulation import engine, policies
from mgpu.simulation.bound import OvertakenError
from mgpu.simulation.outcome import Result
from mgpu.simulation.workload import MIXES, Arrivals, make_trace


def crowded(order: Order, seed: int, mix: str = "tight") -> Result:
    """Bursts that keep the GPU busy, and a bound that most jobs come to."""
    trace = make_trace(MIXES[mix], Arrivals.BURSTS, utilisation=0.8, jobs=120, seed=seed)
    rules = policies.rules(SchedulerConfig(order=order, max_overtake_s=20.0), trace)
    return engine.replay(trace, rules)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mix", sorted(MIXES))
@pytest.mark.parametrize("order", Order)
def test_no_job_overtakes_an_overdue_one(order: Order, mix: str, seed: int) -> None:
    result = crowded(order, seed, mix)
    assert result.longest_wait_s > 20.0
    assert len(result.runs) == 120


@pytest.mark.parametrize("order", [Order.RESIDENT_FIRST, Order.PLANNED])
def test_a_scheduler_that_does_not_keep_to_it_is_found_out(
    monkeypatch: pytest.MonkeyPatch, order: Order
) -> None:
    def never_overdue(self: Waiting, *_: object) -> tuple[Job, bool]:
        return next(iter(self)), False

    monkeypatch.setattr(Waiting, "head", never_overdue)
    with pytest.raises(OvertakenError, match="which has waited for"):
        crowded(order, seed=1)
