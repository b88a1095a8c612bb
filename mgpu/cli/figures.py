"""What cycles of a consumer amount to: its footprint, its residual, and whether they are certain.

Where the broker tells what the consumer's own processes hold (``held_mib``), that is what counts.
Elsewhere only the free memory of the GPUs is known, so a footprint is a difference, and good only
while nobody else takes or gives any: a cycle in which somebody did is doubtful.

A difference says nothing of what the consumer held before it began. One that was found absent, and
whose first load left something behind, held nothing; otherwise it is taken to have held the
residual that is configured.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

TOLERANCE_MIB = 16
"""Free memory may differ by this much without anybody being suspected."""


@dataclass(frozen=True, slots=True)
class Cycle:
    """What was seen. Figures of free memory are sums over all GPUs.

    ``held_peak_mib`` and ``held_after_mib`` are what its processes held; None: nobody can tell.
    ``doubts`` say why the differences of free memory are not to be trusted.
    """

    free_before_mib: int
    free_low_mib: int
    free_after_mib: int
    held_peak_mib: int | None
    held_after_mib: int | None
    load_s: float
    job_s: float | None
    unload_s: float
    doubts: tuple[str, ...] = ()

    @property
    def by_process(self) -> bool:
        """Whether its own processes' figures are known."""
        return self.held_peak_mib is not None and self.held_after_mib is not None


@dataclass(frozen=True, slots=True)
class Figures:
    """The result: medians over the cycles that can be trusted.

    ``residual_mib`` None: without figures by process it could not be seen.
    """

    counted: tuple[tuple[Cycle, int], ...]
    """The cycles, each with its footprint."""
    footprint_mib: int
    residual_mib: int | None
    load_s: float
    job_s: float | None
    unload_s: float
    doubts: tuple[str, ...]


def figures(
    done: Sequence[Cycle], wanted: int, *, was_absent: bool, configured_residual_mib: int
) -> Figures:
    """What the cycles amount to; doubtful ones count only when there are no others.

    ``doubts`` are there when fewer than ``wanted`` could be trusted.
    """
    trusted = [cycle for cycle in done if not cycle.doubts]
    counted = trusted or list(done)
    doubts = dict.fromkeys(doubt for cycle in done for doubt in cycle.doubts)
    residual_mib = _left_behind(done, counted, was_absent=was_absent)
    held_before_mib = configured_residual_mib if residual_mib is None else residual_mib
    footprints = tuple(
        cycle.held_peak_mib
        if cycle.held_peak_mib is not None and cycle.by_process
        else cycle.free_before_mib
        - cycle.free_low_mib
        + (0 if residual_mib is not None and cycle is done[0] else held_before_mib)
        for cycle in counted
    )
    jobs = [cycle.job_s for cycle in counted if cycle.job_s is not None]
    return Figures(
        counted=tuple(zip(counted, footprints, strict=True)),
        footprint_mib=round(statistics.median(footprints)),
        residual_mib=residual_mib,
        load_s=statistics.median(cycle.load_s for cycle in counted),
        job_s=statistics.median(jobs) if jobs else None,
        unload_s=statistics.median(cycle.unload_s for cycle in counted),
        doubts=tuple(doubts) if len(trusted) < wanted else (),
    )


def _left_behind(
    done: Sequence[Cycle], counted: Sequence[Cycle], *, was_absent: bool
) -> int | None:
    """The residual; without figures by process it is seen at most once, after the first load.

    Whoever took memory in another cycle may have done so in that one, too.
    """
    rests = [cycle.held_after_mib for cycle in counted if cycle.held_after_mib is not None]
    if len(rests) == len(counted):
        return round(statistics.median(rests))
    left = done[0].free_before_mib - done[0].free_after_mib
    seen = was_absent and left > 0 and not any(cycle.doubts for cycle in done)
    return left if seen else None


def judged(cycle: Cycle, *, first: bool) -> Cycle:
    """Doubt a cycle that ended with other free memory than it began with.

    The first load of a process may leave a residual behind: less is no surprise then.
    """
    if cycle.by_process:
        return replace(cycle, doubts=())
    more = cycle.free_after_mib - cycle.free_before_mib
    if more > TOLERANCE_MIB or (more < -TOLERANCE_MIB and not first):
        what = f"somebody else {'gave back' if more > 0 else 'took'} {abs(more)} MiB meanwhile"
        return replace(cycle, doubts=(*cycle.doubts, what))
    return cycle
