"""How long one decision takes, and how many calls it makes: ``python -m tests.core.decisions``.

A decision is one event handed to the scheduler. It is measured in processor time, where nothing
waits and where 10,000 jobs wait for 50 consumers that do not fit together; the garbage collector is
off, as in a broker, which collects between events. Calls are counted besides: their number is the
same on every machine, so that a test can hold how it grows (``test_decisions.py``).
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import quantiles

from rich.console import Console
from rich.table import Table

from mgpu.core.effects import Effect, Grant, StartLoad, StartUnload
from mgpu.core.events import Event, GpusRead, JobArrived, JobEnded, LoadEnded, UnloadEnded
from mgpu.core.model import ConsumerPolicy, ConsumerState, GpuReading, Order, Outcome, Policy
from mgpu.core.scheduler import Scheduler

TOTAL_MIB, FOOTPRINT_MIB = 24576, 8000
LOAD_S, UNLOAD_S, JOB_S = 5.0, 0.5, 1.0
KINDS = {JobArrived: "arrival", JobEnded: "end of a job", GpusRead: "reading of a GPU"}

Measure = Callable[[Callable[[], list[Effect]]], tuple[list[Effect], float]]


@dataclass(slots=True)
class Crowd:
    """A scheduler with so many consumers, in a world where everything succeeds after its time."""

    consumers: int
    order: Order
    measure: Measure
    fit: bool = False
    """All are resident: nothing is ever loaded."""
    now: float = 0.0
    free_mib: int = TOTAL_MIB
    jobs: int = 0
    costs: dict[str, list[float]] = field(default_factory=dict)
    coming: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    scheduler: Scheduler = field(init=False)

    def __post_init__(self) -> None:
        footprint_mib = TOTAL_MIB // (2 * self.consumers) if self.fit else FOOTPRINT_MIB
        initially = ConsumerState.RESIDENT if self.fit else ConsumerState.ABSENT
        consumers = {
            f"c{n:02}": ConsumerPolicy(
                name=f"c{n:02}",
                footprint_mib=footprint_mib,
                max_queue=1_000_000,
                initially=initially,
            )
            for n in range(self.consumers)
        }
        rules = Policy(consumers=consumers, order=self.order, max_queue=1_000_000, max_wait_s=1e9)
        self.scheduler = Scheduler(rules)
        if self.fit:
            self.free_mib -= footprint_mib * self.consumers
        self.read()

    def handle(self, event: Event) -> None:
        effects, cost = self.measure(lambda: self.scheduler.handle(event))
        self.costs.setdefault(KINDS.get(type(event), "other"), []).append(cost)
        for effect in effects:
            self.do(effect)

    def do(self, effect: Effect) -> None:
        match effect:
            case Grant(job, _, token):
                self.after(JOB_S, lambda: self.handle(JobEnded(self.now, job, token, Outcome.DONE)))
            case StartLoad(name, attempt):
                self.move(-FOOTPRINT_MIB)
                self.after(LOAD_S, lambda: self.handle(LoadEnded(self.now, name, attempt)))
            case StartUnload(name, attempt):
                self.after(UNLOAD_S, lambda: self.unloaded(name, attempt))
            case _:
                pass

    def unloaded(self, name: str, attempt: int) -> None:
        self.move(FOOTPRINT_MIB)
        self.handle(UnloadEnded(self.now, name, attempt))

    def move(self, mib: int) -> None:
        self.free_mib += mib
        self.after(0.005, self.read)

    def read(self) -> None:
        reading = GpuReading(index=0, total_mib=TOTAL_MIB, free_mib=self.free_mib)
        self.handle(GpusRead(self.now, (reading,)))

    def arrive(self) -> None:
        """One more job, for each consumer in turn."""
        self.jobs += 1
        self.handle(JobArrived(self.now, str(self.jobs), f"c{self.jobs % self.consumers:02}"))

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self.coming.append((self.now + seconds, len(self.coming), act))
        self.coming.sort(key=lambda entry: entry[0])

    def step(self) -> None:
        """Let the next thing happen."""
        self.now, _, act = self.coming.pop(0)
        act()


def in_processor_time(call: Callable[[], list[Effect]]) -> tuple[list[Effect], float]:
    """The seconds of processor time that a call took."""
    began_ns = time.thread_time_ns()
    effects = call()
    return effects, (time.thread_time_ns() - began_ns) / 1e9


def in_calls(call: Callable[[], list[Effect]]) -> tuple[list[Effect], float]:
    """The number of functions that a call called."""
    count = 0

    def counts(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(counts)
    try:
        effects = call()
    finally:
        sys.setprofile(None)
    return effects, count


def crowded(order: Order, queue: int, measure: Measure, *, events: int = 1000) -> Crowd:
    """So many jobs wait for 50 consumers; then as many come as are done."""
    crowd = Crowd(50, order, lambda call: (call(), 0.0))
    while crowd.jobs < queue:
        crowd.now += 0.001
        crowd.arrive()
    crowd.costs.clear()
    crowd.measure = measure
    for _ in range(events):
        crowd.step()
        crowd.read()
        crowd.arrive()
    return crowd


def resident(consumers: int, measure: Measure, *, events: int = 1000) -> Crowd:
    """Everybody is there, and one job after the other comes."""
    crowd = Crowd(consumers, Order.PLANNED, measure, fit=True)
    crowd.costs.clear()
    for _ in range(events):
        crowd.arrive()
        crowd.step()
    return crowd


def main() -> None:
    """Print the table of docs/performance.md."""
    gc.disable()
    table = Table("p50 / p99, µs", *KINDS.values(), box=None, pad_edge=False)
    for consumers in (1, 50):
        row = f"resident target, {consumers} consumer{'s' * (consumers > 1)}"
        table.add_row(row, *_cells(resident(consumers, in_processor_time)))
    for queue in (100, 1_000, 10_000):
        for order in Order:
            crowd = crowded(order, queue, in_processor_time)
            table.add_row(f"{queue:,} jobs wait for 50 consumers, {order}", *_cells(crowd))
            gc.collect()
    Console(width=120).print(table)


def _cells(crowd: Crowd) -> list[str]:
    cells = []
    for kind in KINDS.values():
        found_us = [cost * 1e6 for cost in crowd.costs.get(kind, ())]
        cut = quantiles(found_us, n=100) if found_us else None
        cells.append(f"{cut[49]:.0f} / {cut[98]:.0f}" if cut else "")
    return cells


if __name__ == "__main__":
    main()
