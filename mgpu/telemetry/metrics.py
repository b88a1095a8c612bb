"""The broker's Prometheus metrics: counters and histograms fed by facts, gauges read at the scrape.

Label values come from the configuration alone, and a series that can be known at the start is
there at the start with 0, so that the first increase of a counter is seen. A fact about anything
that the configuration does not name makes no series.

``docs/metrics.md`` describes every metric; a test compares it with what is exposed. Facts and
scrapes are to come from one thread, the loop's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import assert_never

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from mgpu import __version__
from mgpu.config.model import ConsumerConfig
from mgpu.core.effects import (
    Evicted,
    Fact,
    Finish,
    FootprintLearned,
    FootprintWrong,
    GpuHealthChanged,
    Grant,
    LoadMeasured,
    LockReleased,
    Measured,
    SettleTimedOut,
    StateChanged,
    SwapMeasured,
    UnloadMeasured,
)
from mgpu.core.model import Outcome
from mgpu.core.views import Snapshot
from mgpu.telemetry.gauges import LockHolds, SnapshotCollector

SECONDS_BUCKETS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
    *(20.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
"""From a proxied call's overhead to the default ``max_wait_s`` and ``job_timeout_s``."""

DECISION_BUCKETS = (
    *(1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4),
    *(1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1),
)
"""From one trivial event to a stall that would be felt."""

_DONE, _FAILED = Outcome.DONE.value, Outcome.FAILED.value


class Metrics:
    """All metrics of one broker, registered in ``registry``.

    ``consumers`` is that section of the configuration. ``clock`` is monotonic seconds, for the
    hold of the lock that is under way.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        consumers: Mapping[str, ConsumerConfig],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Otherwise each counter and histogram brings a second series, the time of its creation.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry
        self._consumers = consumers
        self._holds = LockHolds(clock)
        self._make_job_metrics()
        self._make_residency_metrics()
        self.configure(consumers)
        self._decision_seconds = self._histogram(
            "mgpu_scheduler_decision_seconds",
            "Time the scheduler took to handle one event.",
            buckets=DECISION_BUCKETS,
        )
        build = Gauge("mgpu_build_info", "The broker's version.", ["version"], registry=registry)
        build.labels(__version__).set(1)

    def configure(self, consumers: Mapping[str, ConsumerConfig]) -> None:
        """Count for these consumers; counters of others stay as they are."""
        self._consumers = consumers
        self._begin_series()

    def watch(self, snapshot: Callable[[], Snapshot]) -> None:
        """Add the gauges that are read off ``snapshot()`` at each scrape; to be called once."""
        self._registry.register(SnapshotCollector(lambda: self._consumers, snapshot, self._holds))

    def observe(self, fact: Fact | Finish | Grant) -> None:
        """Count what was decided or measured. A grant only starts the clock of a lock's hold."""
        if _consumers_of(fact) <= self._consumers.keys():
            self._count(fact)

    def observe_decision(self, seconds: float) -> None:
        """Count one event that took the scheduler ``seconds`` to handle."""
        self._decision_seconds.observe(seconds)

    def _count(self, fact: Fact | Finish | Grant) -> None:
        match fact:
            case Finish():
                self._count_end(fact)
            case Grant(consumer=consumer, gpus=gpus):
                self._holds.begin(consumer, gpus)
            case LockReleased(gpu, consumer, held_s):
                self._holds.end(consumer, gpu, held_s)
            case Evicted(victim, target):
                self._evictions.labels(victim, target).inc()
            case SwapMeasured(target, seconds):
                self._swap_seconds.labels(target).observe(seconds)
            case SettleTimedOut(consumer):
                self._settle_timeouts.labels(consumer).inc()
            case LoadMeasured(consumer, ok, seconds):
                _count_move(self._loads, self._load_seconds, consumer, seconds, ok=ok)
            case UnloadMeasured(consumer, ok, seconds):
                _count_move(self._unloads, self._unload_seconds, consumer, seconds, ok=ok)
            case (
                StateChanged()
                | FootprintLearned()
                | Measured()
                | FootprintWrong()
                | GpuHealthChanged()
            ):
                pass  # The snapshot tells it at the next scrape.
            case _:
                assert_never(fact)

    def _count_end(self, end: Finish) -> None:
        self._jobs.labels(end.consumer, end.outcome.value).inc()
        if end.outcome is not Outcome.REJECTED:
            waited_s = end.phases.queue_s + end.phases.evict_s + end.phases.load_s
            self._queue_wait_seconds.labels(end.consumer).observe(waited_s)
        if end.run_s > 0:
            self._job_seconds.labels(end.consumer).observe(end.run_s)

    def _make_job_metrics(self) -> None:
        self._jobs = self._counter(
            "mgpu_jobs_total", "Jobs that have ended, by how.", "consumer", "outcome"
        )
        self._queue_wait_seconds = self._histogram(
            "mgpu_queue_wait_seconds",
            "Time from a job's arrival until it held the lease or gave up waiting.",
            "consumer",
        )
        self._job_seconds = self._histogram(
            "mgpu_job_seconds", "Time a job held its lease.", "consumer"
        )

    def _make_residency_metrics(self) -> None:
        self._loads = self._counter(
            "mgpu_loads_total", "Loads that have ended.", "consumer", "outcome"
        )
        self._load_seconds = self._histogram(
            "mgpu_load_seconds", "Time a successful load took.", "consumer"
        )
        self._unloads = self._counter(
            "mgpu_unloads_total", "Unloads that have ended.", "consumer", "outcome"
        )
        self._unload_seconds = self._histogram(
            "mgpu_unload_seconds",
            "Time a successful unload took until its memory showed as free.",
            "consumer",
        )
        self._evictions = self._counter(
            "mgpu_evictions_total", "Unloads to make room for a target.", "victim", "target"
        )
        self._swap_seconds = self._histogram(
            "mgpu_swap_seconds",
            "Time from the decision to make room for a target to its first job.",
            "target",
        )
        self._settle_timeouts = self._counter(
            "mgpu_settle_timeouts_total",
            "Unloads whose memory did not show as free in time.",
            "consumer",
        )

    def _begin_series(self) -> None:
        for consumer in self._consumers:
            self._queue_wait_seconds.labels(consumer)
            self._job_seconds.labels(consumer)
            for end in Outcome:
                self._jobs.labels(consumer, end.value)
            for seconds in (self._load_seconds, self._unload_seconds, self._swap_seconds):
                seconds.labels(consumer)
            for outcome in (_DONE, _FAILED):
                self._loads.labels(consumer, outcome)
                self._unloads.labels(consumer, outcome)
            self._settle_timeouts.labels(consumer)
            for target in self._consumers:
                if target != consumer:
                    self._evictions.labels(consumer, target)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, labels, registry=self._registry)

    def _histogram(
        self,
        name: str,
        meaning: str,
        *labels: str,
        buckets: tuple[float, ...] = SECONDS_BUCKETS,
    ) -> Histogram:
        return Histogram(name, meaning, labels, buckets=buckets, registry=self._registry)


def _consumers_of(fact: Fact | Finish | Grant) -> set[str]:
    match fact:
        case Evicted(victim, target):
            return {victim, target}
        case SwapMeasured(target):
            return {target}
        case GpuHealthChanged():
            return set()
        case _:
            return {fact.consumer}


def _count_move(
    moves: Counter, durations: Histogram, consumer: str, seconds: float | None, *, ok: bool
) -> None:
    moves.labels(consumer, _DONE if ok else _FAILED).inc()
    if ok and seconds is not None:
        durations.labels(consumer).observe(seconds)
