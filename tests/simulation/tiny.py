"""Traces small enough to be worked out by hand."""

from __future__ import annotations

from mgpu.core.model import Order
from mgpu.simulation import engine, policies
from mgpu.simulation.engine import IDEAL, Conditions
from mgpu.simulation.outcome import Result
from mgpu.simulation.workload import NO_RULES, Arrival, Rules, Service, Trace


def service(
    name: str,
    footprint_mib: int = 600,
    load_s: float = 2.0,
    unload_s: float = 1.0,
    gpus: tuple[int, ...] | None = None,
    *,
    rules: Rules = NO_RULES,
) -> Service:
    return Service(
        name=name,
        footprint_mib=footprint_mib,
        load_s=load_s,
        unload_s=unload_s,
        gpus=gpus,
        rules=rules,
    )


def trace(
    *jobs: tuple[float, str, float],
    total_mib: tuple[int, ...] = (1000,),
    services: tuple[Service, ...] = (service("a"), service("b")),
    resident: tuple[str, ...] = (),
) -> Trace:
    """Jobs are (arrival, consumer, seconds); there is no cushion."""
    return Trace(
        total_mib=total_mib,
        services={one.name: one for one in services},
        arrivals=tuple(Arrival(*job) for job in jobs),
        cushion_mib=0,
        resident=resident,
    )


ABA = ((0.0, "a", 1.0), (0.5, "b", 1.0), (1.0, "a", 1.0))
"""Two consumers in turn; of 600 MiB each, one fits into 1000 MiB, and both into 1200."""


def replay(
    what: Trace, order: Order, conditions: Conditions = IDEAL, *, lanes: bool = False
) -> Result:
    """Under an order alone, invariants checked."""
    [candidate] = [
        c for c in policies.baselines() if c.scheduler is not None and c.scheduler.order is order
    ]
    assert candidate.scheduler is not None
    rules = policies.rules(candidate.scheduler, what)
    return engine.replay(what, rules, conditions, check=True, lanes=lanes)


def waits(result: Result) -> list[float]:
    """In order of arrival."""
    return [round(run.wait_s, 6) for run in sorted(result.runs, key=lambda run: run.number)]
