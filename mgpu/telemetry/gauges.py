"""What the metrics say of the present moment, read off a snapshot of the scheduler at each scrape.

Nothing here is kept between scrapes but the time the lock was held, which is a counter: it goes
on growing while a hold lasts, so that a job of an hour shows while it runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mgpu.config.model import ConsumerConfig
from mgpu.core.model import ConsumerState
from mgpu.core.views import ConsumerView, GpuView, Snapshot

_BYTES_PER_MIB = 1024 * 1024


class LockHolds:
    """How long each consumer has held each GPU's lock, in seconds, the hold under way included."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: dict[tuple[int, str], float] = {}
        self._ended_s: defaultdict[tuple[int, str], float] = defaultdict(float)
        self._shown_s: defaultdict[tuple[int, str], float] = defaultdict(float)

    def begin(self, consumer: str, gpus: Iterable[int]) -> None:
        """A job of ``consumer`` got the lock of ``gpus``; a hold already under way goes on."""
        now = self._clock()
        for gpu in gpus:
            self._since.setdefault((gpu, consumer), now)

    def end(self, consumer: str, gpu: int, held_s: float) -> None:
        """The hold is over and lasted ``held_s``."""
        self._since.pop((gpu, consumer), None)
        self._ended_s[gpu, consumer] += held_s

    def total_s(self, gpu: int, consumer: str) -> float:
        """All holds together until now; never less than the last time it was asked for."""
        key = (gpu, consumer)
        now = self._clock()
        total = self._ended_s[key] + now - self._since.get(key, now)
        # The scheduler times a hold by its events, the scrape by the clock: a step back of a
        # millisecond would look like a restart of the counter.
        self._shown_s[key] = max(self._shown_s[key], total)
        return self._shown_s[key]


class SnapshotCollector(Collector):
    """Makes the gauges out of ``snapshot()``, for the ``consumers()`` that are configured only."""

    def __init__(
        self,
        consumers: Callable[[], Mapping[str, ConsumerConfig]],
        snapshot: Callable[[], Snapshot],
        holds: LockHolds,
    ) -> None:
        self._consumers = consumers
        self._snapshot = snapshot
        self._holds = holds

    def collect(self) -> Iterator[Metric]:
        """One snapshot's gauges."""
        snapshot = self._snapshot()
        views = [view for name in self._consumers() if (view := snapshot.consumers.get(name))]
        yield from _consumer_gauges(views)
        yield self._footprints(views)
        yield from _gpu_gauges(snapshot.gpus)
        yield self._lock_held(snapshot.gpus, views)

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering is not to ask for a snapshot before there is one."""
        return ()

    def _footprints(self, views: Iterable[ConsumerView]) -> Metric:
        footprints = _gauge(
            "mgpu_consumer_footprint_bytes", "VRAM while resident.", "consumer", "source"
        )
        for view in views:
            configured_mib = self._consumers()[view.name].footprint_mib
            if configured_mib != "auto":
                footprints.add_metric([view.name, "configured"], configured_mib * _BYTES_PER_MIB)
            if view.measured_mib is not None:
                footprints.add_metric([view.name, "measured"], view.measured_mib * _BYTES_PER_MIB)
        return footprints

    def _lock_held(self, gpus: Iterable[GpuView], views: Iterable[ConsumerView]) -> Metric:
        held = CounterMetricFamily(
            "mgpu_lock_held_seconds",
            "Time a consumer has held a GPU's lock, the hold under way included.",
            labels=["gpu", "consumer"],
        )
        for gpu in gpus:
            for view in views:
                total_s = self._holds.total_s(gpu.index, view.name)
                held.add_metric([str(gpu.index), view.name], total_s)
        return held


def _consumer_gauges(views: Iterable[ConsumerView]) -> Iterator[Metric]:
    queued = _gauge("mgpu_queue_depth", "Jobs that wait.", "consumer")
    running = _gauge("mgpu_jobs_running", "Jobs that hold a lease.", "consumer")
    up = _gauge("mgpu_consumer_up", "1 when the consumer is healthy.", "consumer")
    state = _gauge(
        "mgpu_consumer_state", "1 for the state it is in, 0 for others.", "consumer", "state"
    )
    for view in views:
        queued.add_metric([view.name], view.queued)
        running.add_metric([view.name], view.running)
        up.add_metric([view.name], view.healthy)
        for each in ConsumerState:
            state.add_metric([view.name, each.value], view.state is each)
    yield from (queued, running, up, state)


def _gpu_gauges(gpus: Iterable[GpuView]) -> Iterator[Metric]:
    up = _gauge("mgpu_gpu_up", "1 when the GPU's memory can be read.", "gpu")
    memory = _gauge("mgpu_gpu_memory_bytes", "VRAM as last read.", "gpu", "kind")
    for gpu in gpus:
        index = str(gpu.index)
        up.add_metric([index], gpu.healthy)
        if gpu.total_mib == 0:
            continue  # Never read yet: no figure is better than a wrong one.
        for kind, mib in (
            ("total", gpu.total_mib),
            ("free", gpu.free_mib),
            ("reserved", gpu.reserved_mib),
            ("foreign", gpu.foreign_mib),
        ):
            memory.add_metric([index, kind], mib * _BYTES_PER_MIB)
    yield from (up, memory)


def _gauge(name: str, meaning: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, meaning, labels=labels)
