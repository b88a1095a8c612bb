"""What consumers are seen to hold, where the processes that hold a GPU's memory can be told apart.

The figures of a consumer's own processes say what no free memory can: whose it is. They raise the
footprint that was measured while it is resident, say what an unload left behind, and correct a
guess about where its weights are. Where they are missing (``Consumer.own_total_mib`` is None) all
is as the free memory of the GPU tells.

A learned footprint (``footprint_mib: auto``) is the most that was ever seen, since room is to be
made for the peak. So that one exceptional job does not count for ever, it goes half of the way
down to a lower peak whenever a consumer that has worked leaves.
"""

from __future__ import annotations

from mgpu.core import vram
from mgpu.core.effects import FootprintWrong, Measured
from mgpu.core.events import GpusRead
from mgpu.core.model import ConsumerState as S
from mgpu.core.state import Consumer, State
from mgpu.core.step import Step

WRONG_BY = 0.1
"""A configured footprint may differ from the measured one by this share of it."""

RESIDENT_FRACTION = 0.5
"""Whose processes hold this much of its footprint beyond its residual has its weights in VRAM."""

RESIDENT_LEAST_MIB = 256
"""What that must be at least: a library's workspaces are no weights."""

FADING_FRACTION = 0.2
"""Who left a moment ago may still give back so much of its footprint, and more."""

KEEP_FRACTION = 0.02
"""A measured figure that changed by less is not worth being written down again."""


def watch(step: Step, event: GpusRead) -> None:
    """Take what the consumers' processes hold."""
    for reading in event.readings:
        for consumer in step.state.consumers.values():
            if reading.error is None and consumer.name in reading.held_mib:
                consumer.own_mib[reading.index] = reading.held_mib[consumer.name]
            else:
                consumer.own_mib.pop(reading.index, None)
    for consumer in seen(step.state):
        own_mib = consumer.own_total_mib
        if own_mib is not None and not consumer.policy.vram_managed:
            _see(step, consumer, own_mib)


def seen(state: State) -> list[Consumer]:
    """Those of whose processes anything is known."""
    return [c for c in state.consumers.values() if c.own_mib]


def appears(consumer: Consumer, at: float) -> bool:
    """Whether one that is taken for absent, and does not tell, holds its weights after all."""
    own_mib = consumer.own_total_mib
    if consumer.state is not S.ABSENT or own_mib is None or _fades(consumer, own_mib, at):
        return False
    return holds_weights(consumer)


def holds_weights(consumer: Consumer) -> bool:
    """Whether one that does not tell is seen to hold so much that its weights are in VRAM."""
    own_mib, policy = consumer.own_total_mib, consumer.policy
    if policy.tells_residency or own_mib is None:
        return False
    least_mib = max(RESIDENT_LEAST_MIB, RESIDENT_FRACTION * consumer.footprint_mib)
    return own_mib - policy.residual_mib > least_mib


def vanishes(consumer: Consumer) -> bool:
    """Whether an idle one that is taken for resident, and does not tell, holds nothing any more."""
    silent = not consumer.policy.tells_residency and consumer.policy.can_load
    return (
        consumer.state is S.RESIDENT
        and silent
        and not consumer.running
        and consumer.peak_mib > 0
        and consumer.own_total_mib == 0
    )


def loaded(step: Step, consumer: Consumer, seen_mib: int) -> None:
    """A load has shown what it takes; a learned peak is not forgotten for it."""
    if not consumer.policy.learns or seen_mib > (consumer.measured_mib or 0):
        _measured(step, consumer, seen_mib)
    else:
        warn(step, consumer)


def left(step: Step, consumer: Consumer) -> None:
    """A consumer has unloaded: keep what it kept, and forget half of a peak it did not reach."""
    own_mib, measured_mib = consumer.own_total_mib, consumer.measured_mib
    if own_mib is None:
        return
    # Whoever it made room for may have fitted without waiting for all of it.
    if not _fades(consumer, own_mib, step.at):
        consumer.kept_seen_mib = own_mib
    worked = consumer.last_used_at > consumer.resident_since
    lower = measured_mib is not None and 0 < consumer.peak_mib < measured_mib
    if consumer.policy.learns and worked and lower:
        assert measured_mib is not None
        consumer.measured_mib = (measured_mib + consumer.peak_mib) // 2
    _tell(step, consumer)


def reappeared(consumer: Consumer) -> None:
    """One that was taken for absent is there: most of its memory was no residual of it then."""
    if consumer.kept_seen_mib > RESIDENT_FRACTION * consumer.footprint_mib:
        consumer.kept_seen_mib = 0


def wrong(consumer: Consumer) -> bool:
    """Whether a configured footprint is wrong by more than a tenth of what was measured.

    That it is too large shows only when a job has been served: jobs take memory too. The fall of
    free memory during a load does not hold what was kept all along, so it is no measure then.
    """
    policy, measured_mib = consumer.policy, consumer.measured_mib
    if policy.learns or policy.vram_managed or not policy.footprint_mib or not measured_mib:
        return False
    if policy.residual_mib and not consumer.peak_mib:
        return False
    over_mib = policy.footprint_mib - measured_mib
    if over_mib > 0 and consumer.last_used_at <= consumer.resident_since:
        return consumer.warned_mib is not None
    return abs(over_mib) > WRONG_BY * measured_mib


def warn(step: Step, consumer: Consumer) -> None:
    """Say that a configured footprint is wrong, once until the figure changes as much again."""
    if not wrong(consumer):
        consumer.warned_mib = None
        return
    measured_mib, warned_mib = consumer.measured_mib, consumer.warned_mib
    assert measured_mib is not None
    if warned_mib is None or abs(measured_mib - warned_mib) > WRONG_BY * warned_mib:
        consumer.warned_mib = measured_mib
        step.emit(FootprintWrong(consumer.name, consumer.policy.footprint_mib, measured_mib))


def _see(step: Step, consumer: Consumer, own_mib: int) -> None:
    match consumer.state:
        case S.RESIDENT | S.DRAINING:
            consumer.peak_mib = max(consumer.peak_mib, own_mib)
            known_mib = consumer.measured_mib or 0
            if own_mib > known_mib:
                _measured(step, consumer, own_mib)
            else:
                warn(step, consumer)
        case S.ABSENT if not (_fades(consumer, own_mib, step.at) or appears(consumer, step.at)):
            consumer.kept_seen_mib = own_mib
            # What is kept is seen: there is no need to guess at it any more.
            consumer.leftover_mib = 0
        case _:
            pass


def _fades(consumer: Consumer, own_mib: int, at: float) -> bool:
    """Whether what an absent one's processes hold is what it gave up a moment ago."""
    much = own_mib > FADING_FRACTION * consumer.footprint_mib
    return much and at < consumer.fading_until


def _measured(step: Step, consumer: Consumer, seen_mib: int) -> None:
    consumer.measured_mib = seen_mib
    consumer.assumed_mib = 0
    warn(step, consumer)
    _tell(step, consumer)


def _tell(step: Step, consumer: Consumer) -> None:
    """Let what was learned be kept, unless it is much the same as what was kept last."""
    measured_mib, told_mib = consumer.measured_mib, consumer.told_mib
    if measured_mib is None or not consumer.policy.learns:
        return
    if abs(measured_mib - told_mib) > KEEP_FRACTION * told_mib:
        consumer.told_mib = measured_mib
        kept_mib = vram.kept_mib(consumer)
        step.emit(Measured(consumer.name, consumer.gpus, measured_mib, kept_mib))
