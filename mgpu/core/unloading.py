"""Getting one consumer out of VRAM, and not believing it until the memory shows.

An unload that was answered is a request accepted. It is over when the free memory on each of its
GPUs has risen by most of what the consumer was billed for, or when whoever it made room for fits by
measurement (``mgpu.core.swapping`` decides that). When neither happens in time, the harder way is
tried; when that fails too, the consumer is quarantined: it stays on the books with all its memory
and is asked again after a pause that doubles.

Several consumers that leave one GPU at the same time cannot be told apart by its free memory. They
share a baseline, taken when the first of them began, and each has left when the rise since covers
them all; what one gave back is then taken off the rise that the others are judged by. Where the
figure can tell nothing (``mgpu.core.disturbance``), a consumer's word is believed when the time to
settle is up: whoever loads next is held to the measured figure anyway.
"""

from __future__ import annotations

from mgpu.core import disturbance, measuring, vram
from mgpu.core.effects import Answer, Sample, SettleTimedOut, StartUnload, UnloadMeasured
from mgpu.core.events import TimerKind
from mgpu.core.model import ConsumerState as S
from mgpu.core.model import Refusal
from mgpu.core.state import Consumer, State, Unload
from mgpu.core.step import Step

SETTLED_FRACTION = 0.8
"""Of the memory expected back, this much must show. The rest is what footprints are wrong by;
ollama's scheduler waits for the same share (server/sched.go, waitForVRAMRecovery)."""

ACCEPTED_FRACTION = 0.5
"""When time is up, this much is still an unload: what is missing is billed as a leftover. Less is
a failure."""

BUSY_RETRY_S = 5.0
"""When to ask again who was in use: as often as consumers are asked how they are."""

BACKOFF_FIRST_S = 1.0
BACKOFF_MOST_S = 300.0


def backoff_s(failures: int) -> float:
    """The pause after the nth failure in a row: 1 s, doubling up to 5 minutes."""
    return min(BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 30), BACKOFF_MOST_S)


def begin(step: Step, consumer: Consumer, reason: str, *, stop: bool = False) -> None:
    """Ask a consumer without running jobs to unload; ``stop``: by the hardest way it has.

    What its memory is judged by later is the free memory of this moment, so it is asked when that
    has been read.
    """
    hardest = stop and consumer.policy.can_escalate
    consumer.unload = Unload(step.at, stop=stop, escalated=hardest)
    step.state.leaving[consumer.name] = consumer
    consumer.busy = False
    step.move(consumer, S.UNLOADING, reason)
    if not _ask_on_new_figures(step, consumer, consumer.unload):
        step.emit(Sample(fast=True))


def drain(step: Step, consumer: Consumer, reason: str) -> None:
    """Unload a resident consumer as soon as its running jobs have ended."""
    if consumer.running:
        step.move(consumer, S.DRAINING, reason)
    else:
        begin(step, consumer, reason)


def answered(step: Step, consumer: Consumer, error: str | None, *, declined: bool = False) -> None:
    """The consumer accepted to unload, or did not, or was not asked (``declined``).

    One that somebody else uses stays: a harder way would end that work. One that is to be stopped
    at its work is not spared.
    """
    assert consumer.unload is not None
    if error is not None and declined and not consumer.unload.stop:
        _stay(step, consumer, consumer.unload, error)
        return
    if error is not None:
        _escalate_or_quarantine(step, consumer, error)
        return
    consumer.unload.answered = True
    settle_s = step.state.policy.settle_timeout_s
    consumer.fading_until = step.at + settle_s
    step.set_timer(TimerKind.SETTLE, consumer.name, settle_s, consumer.attempt)
    step.emit(Sample(fast=True))


def watch(step: Step) -> None:
    """Look whether memory that was given back shows by now."""
    leaving = step.state.leaving.values()
    for consumer in leaving:
        assert consumer.unload is not None
        if not consumer.unload.asked:
            _ask_on_new_figures(step, consumer, consumer.unload)
    for consumer in [c for c in leaving if _has_left(step.state, c)]:
        absent(step, consumer, "its memory is free")


def settle_timed_out(step: Step, consumer: Consumer) -> None:
    """The memory did not show as free in time."""
    unload = consumer.unload
    assert unload is not None
    if consumer.needs_unknown:
        absent(step, consumer, "by its own word: nobody knows what it held")
        return
    blind = disturbance.blind(step.state, consumer.gpus)
    tells = not blind and all(_own_freed_on(consumer, i) is not None for i in consumer.gpus)
    if not tells and (unload.disturbed or blind):
        absent(step, consumer, "by its own word: its memory cannot be told from others'")
        return
    # Others have had less time than this one: who has not even answered has given nothing back.
    fraction = min(1.0, max(0.0, _freed(step.state, consumer, answered=True)))
    missing_mib = round((1.0 - fraction) * vram.returnable_mib(consumer))
    step.emit(SettleTimedOut(consumer.name, missing_mib))
    if fraction >= ACCEPTED_FRACTION:
        if not tells:
            consumer.leftover_mib += missing_mib
        absent(step, consumer, f"unloaded, but kept {missing_mib} MiB")
    else:
        _escalate_or_quarantine(step, consumer, f"unloaded, but {missing_mib} MiB are not free")


def absent(step: Step, consumer: Consumer, reason: str) -> None:
    """A consumer that was leaving has left."""
    unload = consumer.unload
    assert unload is not None
    if consumer.state is S.UNLOADING:
        _take_off(step, consumer)
        measuring.left(step, consumer)
        step.cancel_timer(TimerKind.SETTLE, consumer.name, consumer.attempt)
        step.emit(UnloadMeasured(consumer.name, ok=True, seconds=step.at - unload.started_at))
        consumer.failures = 0
    else:
        step.cancel_timer(TimerKind.QUARANTINE, consumer.name, consumer.attempt)
    consumer.attempt += 1
    consumer.unload = None
    del step.state.leaving[consumer.name]
    step.move(consumer, S.ABSENT, reason)
    answer(step, consumer, None)


def answer(step: Step, consumer: Consumer, refusal: Refusal | None) -> None:
    """Tell everybody who asked for this unload how it went."""
    for request in consumer.unload_requests:
        step.emit(Answer(request, refusal))
    consumer.unload_requests.clear()


def quarantine_over(step: Step, consumer: Consumer) -> None:
    """Give a quarantined consumer another chance.

    One that never accepted to unload is asked again. One that did, and whose memory did not show,
    cannot be asked for more: what is missing is billed as its leftover, and it may load again.
    """
    assert consumer.unload is not None
    if consumer.unload.answered:
        shown = 0.0 if consumer.unload.disturbed else _freed(step.state, consumer, answered=True)
        fraction = min(1.0, max(0.0, shown))
        consumer.leftover_mib += round((1.0 - fraction) * vram.returnable_mib(consumer))
        absent(step, consumer, "given back, its memory is billed as a leftover")
    else:
        begin(step, consumer, "asked to unload again")


def _ask_on_new_figures(step: Step, consumer: Consumer, unload: Unload) -> bool:
    """Ask a consumer to unload unless the figures are old; whether that was done."""
    state = step.state
    fresh = vram.figures_are_fresh(state, step.at) and vram.loads_show(state, consumer.gpus)
    if consumer.gpus and not fresh:
        return False
    unload.asked = True
    # Of a consumer that its first job loads it is not known how much of its room it took.
    unload.disturbed = disturbance.blind(state, consumer.gpus) or consumer.name in state.rooms
    unload.baseline_mib = {i: _baseline_mib(state, consumer, i) for i in consumer.gpus}
    unload.own_baseline_mib = {i: m for i, m in consumer.own_mib.items() if i in consumer.gpus}
    _ask(step, consumer, escalate=unload.escalated)
    return True


def _ask(step: Step, consumer: Consumer, *, escalate: bool) -> None:
    consumer.attempt += 1
    step.emit(StartUnload(consumer.name, consumer.attempt, escalate=escalate))


def _stay(step: Step, consumer: Consumer, unload: Unload, error: str) -> None:
    step.emit(UnloadMeasured(consumer.name, ok=False, seconds=step.at - unload.started_at))
    consumer.attempt += 1
    consumer.unload = None
    del step.state.leaving[consumer.name]
    consumer.busy = True
    step.move(consumer, S.RESIDENT, error)
    answer(step, consumer, Refusal("unload-failed", error, BUSY_RETRY_S))


def _escalate_or_quarantine(step: Step, consumer: Consumer, error: str) -> None:
    unload = consumer.unload
    assert unload is not None
    if consumer.policy.can_escalate and not unload.escalated:
        unload.escalated = True
        unload.answered = False
        _ask(step, consumer, escalate=True)
        return
    step.emit(UnloadMeasured(consumer.name, ok=False, seconds=step.at - unload.started_at))
    consumer.failures += 1
    consumer.attempt += 1
    pause_s = backoff_s(consumer.failures)
    consumer.held_off_until = step.at + pause_s
    step.set_timer(TimerKind.QUARANTINE, consumer.name, pause_s, consumer.attempt)
    step.move(consumer, S.QUARANTINED, error)
    answer(step, consumer, Refusal("unload-failed", f"{consumer.name}: {error}", pause_s))


def _has_left(state: State, consumer: Consumer) -> bool:
    """Whether a consumer's memory shows as free."""
    unload = consumer.unload
    assert unload is not None
    if not (unload.answered or consumer.state is S.QUARANTINED):
        return False
    if unload.disturbed and any(_own_freed_on(consumer, i) is None for i in consumer.gpus):
        return False
    # Memory comes back in steps. A swap that was planned on all of it must not take the first
    # steps for the whole and look for another victim.
    awaited = any(consumer.name in swap.victims for swap in state.swaps.values())
    return _freed(state, consumer) >= (1.0 if awaited else SETTLED_FRACTION)


def _others_leaving(state: State, consumer: Consumer, index: int) -> list[tuple[Consumer, Unload]]:
    """Who else is on the way out of a GPU."""
    return [
        (other, other.unload)
        for other in state.leaving.values()
        if other is not consumer
        and other.state is S.UNLOADING
        and other.unload is not None
        and other.unload.asked
        and index in other.gpus
    ]


def _baseline_mib(state: State, consumer: Consumer, index: int) -> int:
    """What a rise of free memory is counted from, for all who leave at the same time."""
    shared = [u.baseline_mib[index] for _, u in _others_leaving(state, consumer, index)]
    return min(shared, default=state.gpus[index].free_mib)


def _freed_on(state: State, consumer: Consumer, index: int, *, answered: bool = False) -> float:
    """The share of the expected memory that shows as free on one GPU; negative when it fell.

    ``answered``: expect memory only of those who have answered.
    """
    assert consumer.unload is not None
    own = _own_freed_on(consumer, index)
    return _free_risen(state, consumer, index, answered=answered) if own is None else own


def _own_freed_on(consumer: Consumer, index: int) -> float | None:
    """The share of what its own processes were to give back that they have; None: not known."""
    assert consumer.unload is not None
    held_mib = consumer.unload.own_baseline_mib.get(index)
    if not held_mib or index not in consumer.own_mib:
        return None
    expected_mib = held_mib - vram.share_mib(vram.kept_mib(consumer), consumer.gpus)
    return (held_mib - consumer.own_mib[index]) / expected_mib if expected_mib > 0 else 1.0


def _free_risen(state: State, consumer: Consumer, index: int, *, answered: bool = False) -> float:
    """The same by the GPU's free memory, over all who leave together."""
    assert consumer.unload is not None
    expected_mib = vram.gain_mib(consumer) + sum(
        vram.gain_mib(other)
        for other, unload in _others_leaving(state, consumer, index)
        if unload.answered or not answered
    )
    risen_mib = state.gpus[index].free_mib - consumer.unload.baseline_mib[index]
    return risen_mib / expected_mib if expected_mib else 1.0


def _freed(state: State, consumer: Consumer, *, answered: bool = False) -> float:
    """The share of the expected memory that shows as free, on the GPU where it is least."""
    shares = [_freed_on(state, consumer, index, answered=answered) for index in consumer.gpus]
    return min(shares, default=1.0)


def _take_off(step: Step, consumer: Consumer) -> None:
    """Take what a leaver gave back off the rise that the others who leave are judged by.

    What of it does not show yet, because enough for its purpose did, is to be expected.
    """
    state = step.state
    until = step.at + state.policy.settle_timeout_s
    for index in consumer.gpus:
        share = min(1.0, max(0.0, _free_risen(state, consumer, index, answered=True)))
        shown_mib = round(vram.gain_mib(consumer) * share)
        vram.owe(state.gpus[index], vram.gain_mib(consumer) - shown_mib, step.at, until)
        for _, unload in _others_leaving(state, consumer, index):
            unload.baseline_mib[index] += shown_mib
