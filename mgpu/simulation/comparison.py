"""Policies side by side: the same traces under each of them, on as many cores as there are.

The twelve scenarios are the built-in mixes, each with jobs one by one and in bursts, at a moderate
and a high utilisation. A scenario's figure is the mean over its seeds; policies are compared by
the ratio of their figures, and over scenarios by the geometric mean of the ratios.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

from mgpu.simulation import eager, engine, optimum, policies
from mgpu.simulation.engine import Conditions
from mgpu.simulation.outcome import Result
from mgpu.simulation.policies import Baseline, Candidate
from mgpu.simulation.workload import MIXES, Arrivals, Trace, make_trace

WORTH_SHARING = 20_000
"""Simulated jobs, over all policies, from which on starting processes pays: some seconds' worth."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A made-up workload, but for the seed."""

    mix: str
    arrivals: Arrivals
    utilisation: float

    @property
    def name(self) -> str:
        """Such as ``homelab bursts 0.8``."""
        if self.arrivals is Arrivals.BACKLOG:
            return f"{self.mix} {self.arrivals}"
        return f"{self.mix} {self.arrivals} {self.utilisation:g}"

    def trace(self, jobs: int, seed: int) -> Trace:
        """One trace of this kind."""
        return make_trace(
            MIXES[self.mix], self.arrivals, utilisation=self.utilisation, jobs=jobs, seed=seed
        )


SCENARIOS = tuple(
    Scenario(mix, arrivals, utilisation)
    for mix in MIXES
    for arrivals, utilisation in (
        (Arrivals.POISSON, 0.3),
        (Arrivals.POISSON, 0.5),
        (Arrivals.BURSTS, 0.5),
        (Arrivals.BURSTS, 0.8),
    )
)


@dataclass(frozen=True, slots=True)
class Score:
    """The figures of one policy; over several traces the means, but the longest wait of all."""

    mean_wait_s: float
    p95_wait_s: float
    longest_wait_s: float
    loads: float
    reload_s: float
    refused: float


def run(candidate: Candidate, trace: Trace, conditions: Conditions, *, lanes: bool) -> Result:
    """Run one policy over one trace; ``lanes`` for a picture of it."""
    if candidate.scheduler is not None:
        rules = policies.rules(candidate.scheduler, trace)
        return engine.replay(trace, rules, conditions, lanes=lanes)
    if candidate.baseline is Baseline.EAGER:
        return eager.replay(trace, conditions, lanes=lanes)
    return optimum.never_loads(trace)


def compare(
    candidates: Sequence[Candidate],
    traces: Sequence[Trace],
    conditions: Conditions,
    *,
    progress: Callable[[], None] = lambda: None,
) -> list[Score]:
    """The score of each policy over all traces, which are shared out to all cores when many.

    ``progress`` is called once per trace.
    """
    rows: list[list[Score]] = []
    for row in _rows(candidates, traces, conditions):
        rows.append(row)
        progress()
    return [_mean(column) for column in zip(*rows, strict=True)]


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive values."""
    return math.exp(sum(map(math.log, values)) / len(values))


def ratio(ours: float, theirs: float) -> float:
    """``ours / theirs``; two waits of nothing are equal."""
    if theirs:
        return ours / theirs
    return 1.0 if not ours else math.inf


def _rows(
    candidates: Sequence[Candidate], traces: Sequence[Trace], conditions: Conditions
) -> Iterator[list[Score]]:
    score = partial(_score_all, list(candidates), conditions)
    work = len(candidates) * sum(len(trace.arrivals) for trace in traces)
    workers = min(os.cpu_count() or 1, len(traces))
    if workers == 1 or work < WORTH_SHARING:
        yield from map(score, traces)
        return
    # Not forked: a thread of this process may hold a lock that its copy would wait for.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(score, traces)


def _score_all(candidates: list[Candidate], conditions: Conditions, trace: Trace) -> list[Score]:
    return [_score(run(c, trace, conditions, lanes=False)) for c in candidates]


def _score(result: Result) -> Score:
    return Score(
        mean_wait_s=result.mean_wait_s,
        p95_wait_s=result.p95_wait_s,
        longest_wait_s=result.longest_wait_s,
        loads=result.loads,
        reload_s=result.reload_s,
        refused=result.refused,
    )


def _mean(scores: Sequence[Score]) -> Score:
    count = len(scores)
    return Score(
        mean_wait_s=sum(s.mean_wait_s for s in scores) / count,
        p95_wait_s=sum(s.p95_wait_s for s in scores) / count,
        longest_wait_s=max(s.longest_wait_s for s in scores),
        loads=sum(s.loads for s in scores) / count,
        reload_s=sum(s.reload_s for s in scores) / count,
        refused=sum(s.refused for s in scores) / count,
    )
