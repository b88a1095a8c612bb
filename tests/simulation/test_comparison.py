from __future__ import annotations

import math

import pytest

from mgpu.simulation import comparison, policies
from mgpu.simulation.comparison import SCENARIOS, Scenario, Score, compare
from mgpu.simulation.engine import Conditions
from mgpu.simulation.workload import Arrivals
from tests.simulation.tiny import ABA, trace, waits

HERE = Scenario("tight", Arrivals.BURSTS, 0.5)


def test_there_are_twelve_scenarios_with_names_of_their_own() -> None:
    assert len({scenario.name for scenario in SCENARIOS}) == 12
    assert SCENARIOS[0].name == "homelab poisson 0.3"
    assert Scenario("eight", Arrivals.BACKLOG, 0.5).name == "eight backlog"


def test_each_policy_gets_its_own_score_over_all_traces() -> None:
    calls: list[None] = []
    scores = compare(
        policies.baselines(),
        [trace(*ABA), trace((0.0, "a", 1.0))],
        Conditions(),
        progress=lambda: calls.append(None),
    )
    strict, resident_first, _, never = scores
    # The means of 5.5 and 2, and of 3.5 and 2; the longest of all.
    assert strict.mean_wait_s == pytest.approx(3.75)
    assert strict.longest_wait_s == 9.0
    assert resident_first.mean_wait_s == pytest.approx(2.75)
    assert (strict.loads, resident_first.loads) == (2.0, 1.5)
    assert never == Score(0.25, 0.5, 1.0, 0.0, 0.0, 0.0)
    assert len(calls) == 2


def test_several_processes_come_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [HERE.trace(40, seed) for seed in (1, 2)]
    alone = compare(policies.baselines(), found, Conditions())
    monkeypatch.setattr(comparison, "WORTH_SHARING", 0)
    assert compare(policies.baselines(), found, Conditions()) == alone


def test_each_baseline_is_run_as_itself() -> None:
    results = {
        c.name: waits(comparison.run(c, trace(*ABA, total_mib=(1200,)), Conditions(), lanes=False))
        for c in policies.baselines()
    }
    assert results["eager"] == [2.0, 2.5, 3.0]
    assert results["never loads"] == [0.0, 0.5, 1.0]
    assert results["strict"] != results["eager"]


def test_ratios() -> None:
    assert comparison.ratio(1.0, 2.0) == 0.5
    assert comparison.ratio(0.0, 0.0) == 1.0
    assert comparison.ratio(1.0, 0.0) == math.inf
    assert comparison.geometric_mean([0.5, 2.0, 1.0]) == pytest.approx(1.0)
