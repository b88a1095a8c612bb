"""Writes down what a broker serves, as a trace that ``mgpu simulate`` replays.

It is told what logs and metrics are told. A job is written when it has ended, with the time of its
arrival; those that never computed (refused, expired, cancelled while they waited) leave no line,
since nobody knows how long they would have taken. A footprint that is measured has a line too, as
the header was written before. A file that has grown to its bound, or that is there already at the
start, becomes ``FILE.1``, in the place of an older one.

A disk can be slow or full, and the broker waits for neither: lines go through a bounded queue to a
thread, what does not fit into the queue is dropped and counted, and a write that fails ends the
recording with a line in the log.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import structlog

from mgpu.core.effects import (
    Fact,
    Finish,
    FootprintLearned,
    Grant,
    LoadMeasured,
    Measured,
    StateChanged,
    UnloadMeasured,
)
from mgpu.core.model import ConsumerPolicy, ConsumerState, Policy
from mgpu.core.views import ConsumerView, Snapshot
from mgpu.errors import ConfigError
from mgpu.ports import Clock
from mgpu.simulation import traces
from mgpu.simulation.workload import Arrival, Rules

log = structlog.get_logger(__name__)

MOST_BYTES = 64 * 1024 * 1024
MOST_WAITING = 10_000
"""Lines that may wait for the disk."""
CLOSE_TIMEOUT_S = 5.0

_PRESENT = frozenset({ConsumerState.RESIDENT, ConsumerState.DRAINING, ConsumerState.UNLOADING})
_MOVES = frozenset({ConsumerState.LOADING, ConsumerState.UNLOADING})


class TraceRecorder:
    """Records into ``path`` from now on.

    ``snapshot`` says how things are when a file begins. Raises ``ConfigError`` when the file
    cannot be made.
    """

    def __init__(
        self,
        path: Path,
        *,
        policy: Policy,
        snapshot: Callable[[], Snapshot],
        clock: Clock,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._policy = policy
        self._snapshot = snapshot
        self._clock = clock
        self._most_bytes = most_bytes
        self._started_at = clock.now()
        self._bytes = 0
        self._anew = False
        self._dropped = 0
        self._writer = _Writer(path)

    def observe(self, fact: Fact | Finish | Grant) -> None:
        """Write the line that belongs to a fact, if one does."""
        if not self._bytes:
            if not _begins(fact):
                return
            self._put(self._header(), rotate=self._anew)
            self._anew = False
        line = self._line(fact)
        if line is None:
            return
        if self._bytes + len(line) > self._most_bytes:
            self._bytes = 0
            self._put(self._header(), rotate=True)
        self._put(line)

    def configure(self, policy: Policy) -> None:
        """Go on in a new file, for a trace has one set of consumers; the old one is ``FILE.1``."""
        self._policy = policy
        self._anew = self._anew or bool(self._bytes)
        self._bytes = 0

    def close(self) -> None:
        """Write what still waits, as far as the disk lets it be."""
        self._writer.close()
        if self._dropped:
            log.warning("the trace has gaps: the disk was too slow", lines=self._dropped)

    def _put(self, line: str, *, rotate: bool = False) -> None:
        self._bytes += len(line) + 1
        if not self._writer.put(_Line(line, rotate)):
            self._dropped += 1

    def _line(self, fact: Fact | Finish | Grant) -> str | None:
        if getattr(fact, "consumer", None) not in self._policy.consumers:
            return None
        match fact:
            case Finish(run_s=run_s) if run_s > 0:
                return traces.job_line(self._arrival(fact))
            case LoadMeasured(consumer, True, seconds) if seconds is not None:
                return traces.time_line(consumer, "load_s", round(seconds, 6))
            case UnloadMeasured(consumer, True, seconds):
                return traces.time_line(consumer, "unload_s", round(seconds, 6))
            case FootprintLearned(consumer, footprint_mib) | Measured(
                consumer, footprint_mib=footprint_mib
            ):
                return traces.footprint_line(consumer, footprint_mib)
            case _:
                return None

    def _arrival(self, end: Finish) -> Arrival:
        waited_s = end.phases.queue_s + end.phases.evict_s + end.phases.load_s
        arrived_s = self._clock.now() - end.run_s - waited_s - self._started_at
        return Arrival(
            round(max(0.0, arrived_s), 6), end.consumer, round(end.run_s, 6), end.priority
        )

    def _header(self) -> str:
        now = self._snapshot()
        place = {gpu.index: position for position, gpu in enumerate(now.gpus)}
        services = {}
        for name, consumer in self._policy.consumers.items():
            # One that manages its memory itself is never loaded here, so it takes no room either.
            managed, view = consumer.vram_managed, now.consumers[name]
            gpus = [place[index] for index in consumer.gpus or () if index in place]
            # While nobody knows, the view has what it is taken to need, which may be all there is.
            known_mib = None if view.footprint_source == "unknown" else view.footprint_mib
            services[name] = {
                "footprint_mib": 0 if managed else known_mib,
                "load_s": 0.0 if managed else None,
                "gpus": gpus or None,
                **traces.rules_entry(_rules(consumer, view)),
            }
        return traces.header(
            total_mib=[gpu.total_mib for gpu in now.gpus],
            cushion_mib=self._policy.cushion_mib,
            lock=self._policy.lock,
            services=services,
            resident=[n for n in services if now.consumers[n].state in _PRESENT],
        )


def _rules(consumer: ConsumerPolicy, view: ConsumerView) -> Rules:
    managed = consumer.vram_managed
    return Rules(
        concurrency=consumer.concurrency,
        can_coexist_with=consumer.can_coexist_with,
        residual_mib=consumer.residual_mib,
        vram_managed=managed,
        # Of one that manages its memory itself nothing else is to be said.
        can_load=managed or consumer.can_load,
        can_unload=managed or consumer.can_unload,
        pinned=view.pinned,
        idle_unload_s=consumer.idle_unload_s,
    )


def _begins(fact: Fact | Finish | Grant) -> bool:
    """Whether a fact is the first thing that happens to a GPU: who is resident just then counts."""
    return isinstance(fact, Grant) or (isinstance(fact, StateChanged) and fact.new in _MOVES)


@dataclass(frozen=True, slots=True)
class _Line:
    text: str
    rotate: bool
    """Begin a new file with it."""


class _Writer:
    """A thread that appends lines to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = self._begin()
        except OSError as error:
            raise ConfigError(f"jobs.trace: {path}: {error.strerror}") from error
        self._lines: queue.Queue[_Line | None] = queue.Queue(MOST_WAITING)
        self._broken = False
        self._thread = threading.Thread(target=self._run, name="write the trace", daemon=True)
        self._thread.start()

    def put(self, line: _Line) -> bool:
        """Hand a line over; False when it is dropped."""
        if self._broken:
            return False
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            return False
        return True

    def close(self) -> None:
        """Write what waits; a disk that hangs is left alone after a while."""
        with suppress(queue.Full):
            self._lines.put(None, timeout=CLOSE_TIMEOUT_S)
        self._thread.join(CLOSE_TIMEOUT_S)

    def _begin(self) -> TextIO:
        # Only what is a file: a pipe or a device is written to and left where it is.
        if self._path.is_file():
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        return self._path.open("w", encoding="utf-8")

    def _run(self) -> None:
        try:
            while (line := self._lines.get()) is not None:
                if line.rotate:
                    self._file.close()
                    self._file = self._begin()
                self._file.write(f"{line.text}\n")
                if self._lines.empty():
                    self._file.flush()
            self._file.close()
        except OSError as error:
            self._broken = True
            with suppress(OSError):  # closing tries to write once more
                self._file.close()
            log.warning("the trace ends here", path=str(self._path), error=error.strerror)
