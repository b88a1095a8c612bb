from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from mgpu.core.model import Order
from mgpu.simulation.optimum import least_reload_s, never_loads
from mgpu.simulation.workload import MIXES, Arrivals, Rules, Trace, make_trace
from tests.simulation.tiny import ABA, replay, service, trace, waits


def by_brute_force(what: Trace) -> float:
    """Try every order of targets, and every set of victims for each."""
    room_mib = what.total_mib[0] - what.cushion_mib
    services = what.services

    def cheapest(targets: tuple[str, ...], present: frozenset[str]) -> float:
        if not targets:
            return 0.0
        target, *rest = targets
        if target in present:
            return cheapest(tuple(rest), present)
        costs = [float("inf")]
        for count in range(len(present) + 1):
            for gone in itertools.combinations(present, count):
                after = present - set(gone) | {target}
                if sum(services[name].footprint_mib for name in after) <= room_mib:
                    step_s = services[target].load_s + sum(services[v].unload_s for v in gone)
                    costs.append(step_s + cheapest(tuple(rest), after))
        return min(costs)

    wanted = {arrival.consumer for arrival in what.arrivals}
    start = frozenset(what.resident)
    return min(cheapest(order, start) for order in itertools.permutations(wanted))


@pytest.mark.parametrize("seed", range(25))
def test_the_search_finds_what_brute_force_finds(seed: int) -> None:
    chance = random.Random(seed)
    services = tuple(
        service(name, chance.randint(100, 500), chance.uniform(1, 9), chance.uniform(0.1, 3))
        for name in "abcd"
    )
    resident = [s.name for s in services if chance.random() < 0.5]
    while sum(s.footprint_mib for s in services if s.name in resident) > 1000:
        resident.pop()
    jobs = [(0.0, chance.choice("abcd"), 1.0) for _ in range(chance.randint(1, 12))]
    what = trace(*jobs, services=services, resident=tuple(resident))
    assert least_reload_s(what) == pytest.approx(by_brute_force(what))


def test_no_policy_needs_less() -> None:
    for seed in range(5):
        what = make_trace(MIXES["eight"], Arrivals.BACKLOG, utilisation=1, jobs=60, seed=seed)
        least_s = least_reload_s(what)
        assert least_s is not None
        for order in (Order.ARRIVAL, Order.RESIDENT_FIRST):
            assert replay(what, order).reload_s >= least_s - 1e-9


@pytest.mark.parametrize(
    "what",
    [
        trace(*ABA),
        trace((0.0, "a", 1.0), total_mib=(1000, 1000)),
        trace((0.0, "a", 1.0), services=tuple(service(name) for name in "abcdefghi")),
        trace((0.0, "a", 1.0), services=(service("a", 2000),)),
        trace((0.0, "a", 1.0), services=(service("a", rules=Rules(pinned=True)),)),
    ],
    ids=["jobs come over time", "two GPUs", "nine services", "it never fits", "it is pinned"],
)
def test_it_is_not_known_where_it_cannot_be_computed(what: Trace) -> None:
    assert least_reload_s(what) is None


def test_a_gpu_that_never_loads_serves_in_order_of_arrival() -> None:
    result = never_loads(trace(*ABA))
    assert waits(result) == [0.0, 0.5, 1.0]
    assert (result.loads, result.reload_s, result.ended_s) == (0, 0.0, 3.0)
    two = replace(trace(*ABA), total_mib=(1000, 1000))
    assert waits(never_loads(two)) == [0.0, 0.0, 0.0]
