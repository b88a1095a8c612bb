"""Stopping a consumer in the middle of its work: a job that hangs, or a person's restart.

Its jobs come to their end at once, and it is unloaded by the hardest way it has, whether or not
anybody has let go of the job's connections yet. It may go on computing until it has answered (its
unit has stopped), so it keeps the lock that long. It is loaded again when somebody asks for it.
"""

from __future__ import annotations

from typing import assert_never

from mgpu.core import admission, unloading
from mgpu.core.effects import Answer
from mgpu.core.events import RestartRequested, TimerKind
from mgpu.core.jobs import Job
from mgpu.core.model import ConsumerState as S
from mgpu.core.model import Refusal
from mgpu.core.state import Consumer
from mgpu.core.step import Step


def busy_timed_out(step: Step, job: Job) -> None:
    """A job has run for so long that its consumer must be hanging."""
    consumer = step.state.consumers[job.consumer]
    limit_s = consumer.policy.busy_timeout_s
    refusal = Refusal("job-timeout", f"the job ran longer than {limit_s:g} s")
    if not consumer.can_be_unloaded:
        admission.abort(step, job, refusal)
        return
    admission.cut_off(step, job, refusal)
    _stop(step, consumer, f"restarted: a job ran longer than {limit_s:g} s")


def restart(step: Step, event: RestartRequested) -> None:
    """A person wants a consumer to start afresh; answered when it has stopped."""
    consumer = step.state.consumers[event.consumer]
    if not consumer.can_be_unloaded:
        detail = f"{consumer.name} has no way to be unloaded"
        step.emit(Answer(event.request, Refusal("bad-request", detail)))
        return
    consumer.unload_requests.append(event.request)
    match consumer.state:
        case S.UNKNOWN | S.RESIDENT | S.DRAINING:
            _stop(step, consumer, "restarted by hand")
        case S.QUARANTINED:
            step.cancel_timer(TimerKind.QUARANTINE, consumer.name, consumer.attempt)
            _stop(step, consumer, "restarted by hand")
        case S.COOLDOWN:
            step.cancel_timer(TimerKind.COOLDOWN, consumer.name, consumer.attempt)
            step.move(consumer, S.ABSENT, "restarted by hand")
            unloading.answer(step, consumer, None)
        case S.ABSENT:
            unloading.answer(step, consumer, None)
        case S.LOADING | S.UNLOADING:
            pass  # answered when the unload that follows, or is under way, is over
        case _:
            assert_never(consumer.state)


def _stop(step: Step, consumer: Consumer, reason: str) -> None:
    refusal = Refusal("consumer-failed", f"{consumer.name} was {reason}")
    for job in list(consumer.running.values()):
        admission.cut_off(step, job, refusal)
    unloading.begin(step, consumer, reason, stop=True)
