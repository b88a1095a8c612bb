"""What a demo run came to: jobs, waits, loads, evictions, and the files that were made."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mgpu.core.effects import Evicted
from mgpu.core.model import Outcome


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job that ended: how long it waited for the GPU, and the file its answer was kept in."""

    consumer: str
    outcome: Outcome
    wait_s: float
    file: Path | None = None


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds; all 0 when nobody waited."""

    mean_s: float
    p95_s: float
    longest_s: float


def waits(seconds: Iterable[float]) -> Waits:
    """Mean, 95th percentile (nearest rank) and longest."""
    ordered = sorted(seconds)
    if not ordered:
        return Waits(0.0, 0.0, 0.0)
    rank = math.ceil(0.95 * len(ordered))
    return Waits(sum(ordered) / len(ordered), ordered[rank - 1], ordered[-1])


def eviction_sentence(evictions: Sequence[Evicted]) -> str:
    """How often somebody had to leave, in words."""
    match len(evictions):
        case 0:
            return "There were 0 evictions: everything fitted."
        case 1:
            return "There was 1 eviction: one consumer was unloaded to make room for another."
        case count:
            return f"There were {count} evictions: consumers unloaded to make room for others."


def summarise(
    jobs: Sequence[JobRecord], *, loads: int, evictions: Sequence[Evicted], took_s: float
) -> RenderableType:
    """The whole summary: files one a line, then what can be seen without scrolling back.

    Print it with ``crop=False``, so that a path longer than the terminal is wide stays whole.
    """
    parts: list[RenderableType] = []
    files = [job.file for job in jobs if job.file is not None]
    if files:
        parts += [Text(), Text("Files made:")]
        parts += [Text(f"  {file}", no_wrap=True, overflow="ignore") for file in files]
    parts += [Text(), _jobs_table(jobs), Text()]
    waited = waits(job.wait_s for job in jobs)
    done = sum(job.outcome is Outcome.DONE for job in jobs)
    parts.append(
        Text(
            f"{done} of {len(jobs)} jobs done in {took_s:.1f} s with {loads} loads. "
            f"A job waited {waited.mean_s:.2f} s on average, {waited.longest_s:.2f} s at most."
        )
    )
    parts.append(Text(eviction_sentence(evictions), "bold"))
    pairs = Counter((evicted.victim, evicted.target) for evicted in evictions)
    parts += [
        Text(f"  {count:>3} x {victim} -> {target}")
        for (victim, target), count in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    ]
    return Group(*parts)


def _jobs_table(jobs: Sequence[JobRecord]) -> Table:
    table = Table(title="Jobs", title_justify="left", box=box.ROUNDED)
    table.add_column("consumer")
    # An outcome that did not occur needs no column; that the jobs were done does, in any case.
    shown = [o for o in Outcome if o is Outcome.DONE or any(job.outcome is o for job in jobs)]
    for outcome in shown:
        table.add_column(outcome.value, justify="right")
    for heading in ("mean wait", "p95", "longest"):
        table.add_column(heading, justify="right")
    by_consumer: dict[str, list[JobRecord]] = {}
    for job in jobs:
        by_consumer.setdefault(job.consumer, []).append(job)
    for consumer, own in sorted(by_consumer.items()):
        table.add_row(*_row(consumer, own, shown))
    table.add_section()
    table.add_row(*_row("all", jobs, shown), style="bold")
    return table


def _row(name: str, jobs: Sequence[JobRecord], shown: Sequence[Outcome]) -> list[str]:
    outcomes = Counter(job.outcome for job in jobs)
    waited = waits(job.wait_s for job in jobs)
    return [
        name,
        *(str(outcomes[outcome]) for outcome in shown),
        *(f"{value:.2f} s" for value in (waited.mean_s, waited.p95_s, waited.longest_s)),
    ]
