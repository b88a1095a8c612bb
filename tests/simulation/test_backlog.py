"""A backlog is all known beforehand: ``planned`` reloads hardly more than it must."""

from __future__ import annotations

import pytest

from mgpu.simulation import engine, optimum, policies
from mgpu.simulation.workload import MIXES, Arrivals, Mix, make_trace

SLACK = {"scheduler.max_overtake_s": ["100000"]}
"""Nobody waits for so long that the order would have to change."""


@pytest.mark.parametrize("mix", MIXES.values(), ids=lambda mix: mix.name)
def test_a_backlog_costs_hardly_more_reloading_than_it_must(mix: Mix) -> None:
    for seed in range(1, 6):
        trace = make_trace(mix, Arrivals.BACKLOG, utilisation=0.5, jobs=60, seed=seed)
        rules = policies.rules(policies.chosen(SLACK), trace)
        least_s = optimum.least_reload_s(trace)
        assert least_s
        assert engine.replay(trace, rules).reload_s <= 1.05 * least_s
