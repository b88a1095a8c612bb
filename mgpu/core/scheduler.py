"""The decider: an event in, a list of effects out.

``handle`` is the whole interface. It has no clock, no sockets and no tasks: time comes with the
events, waiting is an effect, and the same events give the same effects. One call

1. takes in what happened, and has kept what a person asked for,
2. looks whether memory that was given back shows,
3. lets everybody leave while it is paused, and those who were taken out of the configuration or
   are to be loaded otherwise than they are,
4. takes every swap as far as it goes,
5. asks for pinned consumers that are not there, or for those worth having when nobody waits,
6. serves the waiting, in the order of ``mgpu.core.ordering``,
7. unloads who has been idle for long enough,
8. notes whose memory cannot be told from another's any more,
9. asks for the sampling pace that the state calls for,
10. keeps what was measured, for estimates, and forgets who was taken out and has gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import assert_never

from mgpu.core import (
    admission,
    bandwidth,
    by_hand,
    disturbance,
    estimates,
    keepalive,
    pausing,
    preloading,
    probing,
    reloading,
    restarting,
    restoring,
    serving,
    swapping,
    unloading,
)
from mgpu.core.effects import Answer, Effect, Finish, Phases, Sample
from mgpu.core.events import (
    ConsumerProbed,
    DrainRequested,
    Event,
    GpusLost,
    GpusRead,
    JobArrived,
    JobEnded,
    JobLeft,
    LoadEnded,
    PauseRequested,
    PinRequested,
    PolicyChanged,
    RestartRequested,
    ResumeRequested,
    Timer,
    TimerFired,
    TimerKind,
    UnloadEnded,
    UnloadRequested,
)
from mgpu.core.jobs import Job
from mgpu.core.model import NOTHING_ASKED, ByHand, Outcome, Policy, Refusal
from mgpu.core.model import ConsumerState as S
from mgpu.core.state import Consumer, State
from mgpu.core.step import Step


class Scheduler:
    """Decides who computes, who waits, who is loaded and who has to leave."""

    def __init__(
        self,
        policy: Policy,
        first_token: int = 1,
        learned_mib: Mapping[str, tuple[int, int]] = MappingProxyType({}),
        kept: ByHand = NOTHING_ASKED,
    ) -> None:
        """Start with nothing known about the world; tokens count from ``first_token`` up.

        ``learned_mib``: footprint and residual of consumers whose footprint is measured, as they
        were when the program last ran. ``kept``: what people had asked for then, of consumers of
        this policy.
        """
        consumers = {
            name: Consumer(p, reloading.first_state(p)) for name, p in policy.consumers.items()
        }
        for name, (footprint_mib, residual_mib) in learned_mib.items():
            if policy.consumers[name].learns:
                consumers[name].measured_mib = consumers[name].told_mib = footprint_mib
                consumers[name].kept_seen_mib = residual_mib
        self.state = State(policy, consumers, next_token=first_token)
        by_hand.restore(self.state, kept)

    def handle(self, event: Event) -> list[Effect]:
        """Take in one event and say what is to be done; ``event.at`` never runs backwards."""
        step = Step(event.at, self.state)
        if _concerns_nobody(step.state, event):
            _turn_away(step, event)
            return step.effects
        bandwidth.watch(step)
        _take_in(step, event)
        by_hand.keep(step, event)
        unloading.watch(step)
        reloading.watch(step)
        pausing.watch(step)
        restoring.give_way(step)
        swapping.advance(step)
        preloading.watch(step)
        restoring.watch(step)
        serving.serve(step)
        restoring.give_up(step)
        if isinstance(event, JobArrived):
            admission.hold_to_bounds(step, event.job)
        keepalive.watch(step)
        disturbance.note(self.state)
        _set_pace(step)
        estimates.learn(self.state, step.effects)
        reloading.forget(step)
        return step.effects


def _concerns_nobody(state: State, event: Event) -> bool:
    """Whether an event is about a consumer that was forgotten meanwhile."""
    if isinstance(event, TimerFired):
        of_consumers = {TimerKind.SETTLE, TimerKind.COOLDOWN, TimerKind.QUARANTINE}
        return event.timer.kind in of_consumers and event.timer.subject not in state.consumers
    name = getattr(event, "consumer", None)
    return name is not None and name not in state.consumers


def _turn_away(step: Step, event: Event) -> None:
    """Tell whoever wants a consumer that is not there any more."""
    match event:
        case JobArrived(_, job, name):
            refusal = admission.gone(name)
            step.emit(Finish(job, name, Outcome.REJECTED, refusal, Phases(), 0.0))
        case UnloadRequested(_, request, name) | RestartRequested(_, request, name):
            step.emit(Answer(request, admission.gone(name)))
        case _:
            pass


def _take_in(step: Step, event: Event) -> None:  # noqa: C901, PLR0912 - one arm an event
    match event:
        case JobArrived():
            admission.arrive(step, event)
        case JobLeft():
            if (job := step.state.jobs.get(event.job)) is not None:
                admission.leave(step, job)
        case JobEnded():
            _job_ended(step, event)
        case LoadEnded():
            _load_ended(step, event)
        case UnloadEnded():
            consumer = step.state.consumers[event.consumer]
            if consumer.state is S.UNLOADING and consumer.attempt == event.attempt:
                unloading.answered(step, consumer, event.error, declined=event.declined)
                # One that was stopped at its work held the lock until now (mgpu.core.restarting).
                admission.unlock(step, consumer)
        case ConsumerProbed():
            probing.consumer_probed(step, event)
        case GpusRead():
            probing.gpus_read(step, event)
        case GpusLost():
            probing.gpus_lost(step, event)
        case UnloadRequested():
            _unload_requested(step, event)
        case RestartRequested():
            restarting.restart(step, event)
        case PinRequested(_, name, pinned):
            preloading.pin(step, step.state.consumers[name], pinned=pinned)
        case PauseRequested(_, request):
            pausing.pause(step, request)
        case ResumeRequested():
            pausing.resume(step)
        case PolicyChanged(_, policy):
            reloading.change(step, policy)
        case DrainRequested():
            _drain(step)
        case TimerFired():
            _timer_fired(step, event.timer)
        case _:
            assert_never(event)


def _job_ended(step: Step, event: JobEnded) -> None:
    admission.end(step, event)
    draining = [c for c in step.state.consumers.values() if c.state is S.DRAINING]
    for consumer in draining:
        if not consumer.running:
            unloading.begin(step, consumer, "drained")


def _load_ended(step: Step, event: LoadEnded) -> None:
    consumer = step.state.consumers[event.consumer]
    if consumer.state is not S.LOADING or consumer.attempt != event.attempt:
        return
    swapping.load_ended(step, consumer, event.error, begun=event.begun)
    if event.error is None and consumer.unload_requests:
        unloading.drain(step, consumer, "unloaded by hand")


def _unload_requested(step: Step, event: UnloadRequested) -> None:
    consumer = step.state.consumers[event.consumer]
    if not consumer.can_be_unloaded:
        detail = f"{consumer.name} has no way to be unloaded"
        step.emit(Answer(event.request, Refusal("bad-request", detail)))
        return
    detail = f"{consumer.name} was unloaded by hand"
    admission.refuse_waiting(
        step, consumer, Refusal("consumer-cooldown", detail, admission.RETRY_QUEUE_S)
    )
    consumer.unloaded_by_hand = True
    consumer.unload_requests.append(event.request)
    match consumer.state:
        case S.UNKNOWN | S.RESIDENT:
            unloading.drain(step, consumer, "unloaded by hand")
        case S.QUARANTINED:
            step.cancel_timer(TimerKind.QUARANTINE, consumer.name, consumer.attempt)
            unloading.begin(step, consumer, "unloaded by hand")
        case S.ABSENT | S.COOLDOWN:
            unloading.answer(step, consumer, None)
        case S.LOADING | S.DRAINING | S.UNLOADING:
            pass  # answered when the unload that follows, or is under way, is over
        case _:
            assert_never(consumer.state)


def _drain(step: Step) -> None:
    step.state.draining = True
    refusal = Refusal("draining", "the broker is shutting down", admission.RETRY_GPU_S)
    for consumer in step.state.consumers.values():
        admission.refuse_waiting(step, consumer, refusal)


def _timer_fired(step: Step, timer: Timer) -> None:
    match timer.kind:
        case TimerKind.WAIT | TimerKind.RUN | TimerKind.BUSY:
            if (job := step.state.jobs.get(timer.subject)) is not None:
                _job_timer_fired(step, job, timer.kind)
        case TimerKind.MIN_RESIDENT | TimerKind.IDLE | TimerKind.PRELOAD:
            pass  # nothing to take in: whom it is about is looked at with every event
        case TimerKind.SETTLE | TimerKind.COOLDOWN | TimerKind.QUARANTINE:
            consumer = step.state.consumers[timer.subject]
            if consumer.attempt == timer.attempt:
                _pause_over(step, consumer, timer.kind)
        case _:
            assert_never(timer.kind)


def _job_timer_fired(step: Step, job: Job, kind: TimerKind) -> None:
    if kind is TimerKind.RUN:
        admission.time_out(step, job)
    elif kind is TimerKind.BUSY:
        restarting.busy_timed_out(step, job)
    elif not job.token:
        admission.expire(step, job)


def _pause_over(step: Step, consumer: Consumer, kind: TimerKind) -> None:
    match kind, consumer.state:
        case TimerKind.SETTLE, S.UNLOADING:
            unloading.settle_timed_out(step, consumer)
        case TimerKind.COOLDOWN, S.COOLDOWN:
            step.move(consumer, S.ABSENT, "its cooldown is over")
        case TimerKind.QUARANTINE, S.QUARANTINED:
            unloading.quarantine_over(step, consumer)
        case _:
            pass


def _set_pace(step: Step) -> None:
    """Sample fast for as long as memory is expected to change."""
    state = step.state
    fast = bool(state.swaps) or any(c.state is S.UNLOADING for c in state.leaving.values())
    if fast is not state.sampling_fast:
        state.sampling_fast = fast
        step.emit(Sample(fast))
