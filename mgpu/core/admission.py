"""A job's way in and out: arrival and its bounds, the lease, the end.

Every job that arrives leaves exactly one ``Finish``. The lease is the right to compute: its token
grows with every grant, and an end that carries another token than the job's changes nothing.
"""

from __future__ import annotations

from mgpu.core import estimates, eviction, placement, prospects
from mgpu.core.effects import Abort, Finish, Grant, LockReleased, Phases, SwapMeasured
from mgpu.core.events import JobArrived, JobEnded, JobKind, TimerKind
from mgpu.core.jobs import Job
from mgpu.core.model import ConsumerState as S
from mgpu.core.model import LockMode, Outcome, Refusal
from mgpu.core.state import Consumer, State
from mgpu.core.step import Step

RETRY_QUEUE_S = 2.0
"""When to come back where no estimate helps: about one short job later."""

RETRY_PAUSED_S = 30.0
"""When to come back after ``paused``: a person decides, so not soon."""

RETRY_GPU_S = 5.0
"""When to come back after ``gpu-unhealthy``: good readings are believed at once."""


def arrive(step: Step, event: JobArrived) -> None:
    """Queue a new job, or refuse it at once when waiting is known to be in vain."""
    state = step.state
    consumer = state.consumers[event.consumer]
    priority = consumer.policy.priority if event.priority is None else event.priority
    job = Job(
        event.job,
        event.consumer,
        event.kind,
        priority,
        state.next_seq,
        step.at,
        idle_unload_s=event.idle_unload_s,
        load_key=event.load_key,
    )
    state.next_seq += 1
    refusal = _refusal(step, consumer, job)
    if refusal is not None:
        step.emit(Finish(job.id, job.consumer, Outcome.REJECTED, refusal, Phases(), 0.0, priority))
        return
    if event.kind is JobKind.LOAD and consumer.state is S.RESIDENT and consumer.suits(job):
        step.emit(Finish(job.id, job.consumer, Outcome.DONE, None, Phases(), 0.0, priority))
        return
    state.jobs[job.id] = job
    state.waiting += 1
    if event.kind is JobKind.COMPUTE and len(consumer.waiting) == 0 and not consumer.running:
        consumer.averages.demand.add(step.at)
    consumer.waiting.add(job)
    state.awaited[consumer.name] = consumer
    longest_s = state.policy.max_wait_s
    wait_s = longest_s if event.max_wait_s is None else min(event.max_wait_s, longest_s)
    step.set_timer(TimerKind.WAIT, job.id, wait_s)


def hold_to_bounds(step: Step, job_id: str) -> None:
    """Refuse a job that was let in because it need not wait, and now has to without a place."""
    state = step.state
    job = state.jobs.get(job_id)
    if job is None or job.token:
        return
    refusal = _queue_full(step, state.consumers[job.consumer], own=1)
    if refusal is not None:
        refuse(step, job, refusal)


def leave(step: Step, job: Job) -> None:
    """Nobody wants a job any more."""
    if job.token:
        abort(step, job, Refusal("client-left", "the client left or the job was cancelled"))
    else:
        refusal = Refusal("client-left", "cancelled while it waited")
        _end_waiting(step, job, Outcome.CANCELLED, refusal)


def expire(step: Step, job: Job) -> None:
    """A job has waited for as long as it may."""
    waited_s = step.at - job.arrived_at
    consumer = step.state.consumers[job.consumer]
    refusal = Refusal(
        "wait-expired",
        f"the job waited {waited_s:.1f} s for {job.consumer}, which is {consumer.state}",
        RETRY_QUEUE_S,
    )
    _end_waiting(step, job, Outcome.EXPIRED, refusal)


def refuse_waiting(
    step: Step, consumer: Consumer, refusal: Refusal, outcome: Outcome = Outcome.REJECTED
) -> None:
    """End all jobs that wait for a consumer."""
    for job in list(consumer.waiting):
        _end_waiting(step, job, outcome, refusal)


def refuse(step: Step, job: Job, refusal: Refusal) -> None:
    """End one job that waits."""
    _end_waiting(step, job, Outcome.REJECTED, refusal)


def grantable(state: State, consumer: Consumer) -> bool:
    """Whether a consumer's next job may compute now."""
    if consumer.state is not S.RESIDENT or len(consumer.running) >= consumer.policy.concurrency:
        return False
    if not consumer.gpus:
        return False
    shared = state.policy.lock is LockMode.SHARED
    for index in consumer.gpus:
        gpu = state.gpus[index]
        others = len(gpu.holders) - (consumer.name in gpu.holders)
        if not gpu.healthy or (others and not shared):
            return False
    return True


def grant(step: Step, consumer: Consumer, job: Job) -> None:
    """Give a waiting job its lease."""
    state = step.state
    _dequeue(step, consumer, job)
    job.phases = _phases(consumer, job, step.at)
    job.granted_at = step.at
    job.token = state.next_token
    state.next_token += 1
    consumer.running[job.id] = job
    consumer.unasked = False
    for index in consumer.gpus:
        state.gpus[index].holders.setdefault(consumer.name, step.at)
    times = consumer.swap_times
    if times is not None and not times.first_job_served:
        times.first_job_served = True
        step.emit(SwapMeasured(consumer.name, step.at - times.started_at))
    step.set_timer(TimerKind.RUN, job.id, consumer.policy.job_timeout_s)
    if consumer.policy.busy_timeout_s is not None:
        step.set_timer(TimerKind.BUSY, job.id, consumer.policy.busy_timeout_s)
    step.emit(Grant(job.id, consumer.name, job.token, consumer.gpus, job.phases))


def satisfy_loads(step: Step, consumer: Consumer) -> None:
    """End the jobs that only wanted a consumer resident, now that it is."""
    for job in list(consumer.waiting):
        if job.kind is JobKind.LOAD and consumer.suits(job):
            _end_waiting(step, job, Outcome.DONE, None)


def abort(step: Step, job: Job, refusal: Refusal) -> None:
    """Tell a running job to stop; its lease stands until it has."""
    if job.aborted is None:
        job.aborted = refusal
        step.emit(Abort(job.id, refusal))


def time_out(step: Step, job: Job) -> None:
    """A job has run for as long as it may."""
    limit_s = step.state.consumers[job.consumer].policy.job_timeout_s
    abort(step, job, Refusal("job-timeout", f"the job ran longer than {limit_s:g} s"))


def end(step: Step, event: JobEnded) -> None:
    """Take a lease back. A token that is not the job's is void."""
    job = step.state.jobs.get(event.job)
    if job is None or not job.token or job.token != event.token:
        return
    # One that was told to stop may have been done a moment before.
    refusal = None if event.outcome is Outcome.DONE else job.aborted
    consumer = _take_off(step, job)
    if not consumer.running:
        unlock(step, consumer)
    room = step.state.rooms.get(consumer.name)
    if room is not None and event.outcome is Outcome.DONE:
        room.filled_at = step.at
    _finish(step, job, event.outcome, refusal)


def cut_off(step: Step, job: Job, refusal: Refusal) -> None:
    """End a running job at once: its lease is void, and whoever holds it is told to stop.

    The lock stays with the consumer, which knows nothing of this yet.
    """
    abort(step, job, refusal)
    assert job.aborted is not None
    left = job.aborted.code == "client-left"
    _take_off(step, job)
    _finish(step, job, Outcome.CANCELLED if left else Outcome.FAILED, job.aborted)


def gone(name: str) -> Refusal:
    """Why nobody is served by a consumer that the configuration does not name any more."""
    return Refusal("unknown-consumer", f"{name} was taken out of the configuration")


def loaded_only_so(consumer: Consumer) -> Refusal:
    """Why a job is not served that wants a consumer loaded as it cannot be."""
    return Refusal("bad-request", f"{consumer.name} has no way to be loaded as the job wants it")


def unlock(step: Step, consumer: Consumer) -> None:
    """Let others compute on a consumer's GPUs."""
    for index in consumer.gpus:
        since = step.state.gpus[index].holders.pop(consumer.name, None)
        if since is not None:
            step.emit(LockReleased(index, consumer.name, step.at - since))


def _refusal(step: Step, consumer: Consumer, job: Job) -> Refusal | None:
    state = step.state
    if state.draining:
        return Refusal("draining", "the broker is shutting down", RETRY_GPU_S)
    if consumer.retired:
        return gone(consumer.name)
    if job.load_key is not None and not consumer.policy.can_load:
        return loaded_only_so(consumer)
    if state.paused:
        return Refusal("paused", "the broker is paused: mgpu resume ends it", RETRY_PAUSED_S)
    if consumer.state in {S.COOLDOWN, S.QUARANTINED}:
        return cooldown_refusal(step, consumer)
    refusal = placement.never_fits(state, consumer) or _unhealthy(state, consumer)
    at_once = grantable(state, consumer) and consumer.suits(job)
    if refusal is None and (consumer.waiting or not at_once):
        refusal = _queue_full(step, consumer, own=0)
    return refusal


def _queue_full(step: Step, consumer: Consumer, *, own: int) -> Refusal | None:
    """Why a job cannot wait; ``own`` is 1 when it is counted already."""
    here, everywhere = len(consumer.waiting) - own, step.state.waiting - own
    if here >= consumer.policy.max_queue:
        detail = f"{here} jobs wait for {consumer.name} already"
    elif everywhere >= step.state.policy.max_queue:
        detail = f"{everywhere} jobs wait already"
    else:
        return None
    return Refusal("queue-full", detail, estimates.next_start_s(step.state, consumer, step.at))


def cooldown_refusal(step: Step, consumer: Consumer) -> Refusal:
    """Why a consumer in cooldown or quarantine takes no job now, and until when."""
    why = consumer.history[-1].partition(": ")[2]
    left_s = max(0.0, consumer.held_off_until - step.at)
    detail = f"{consumer.name} is left alone for {left_s:.1f} s: {why}"
    return Refusal("consumer-cooldown", detail, left_s)


def _unhealthy(state: State, consumer: Consumer) -> Refusal | None:
    """Why nothing can be admitted to any of a consumer's GPUs, as far as that is known yet."""
    if not state.gpus and state.gpus_error is None:
        return None
    for gpus in prospects.choices(state, consumer):
        if all(index in state.gpus and state.gpus[index].healthy for index in gpus):
            return None
    errors = [f"GPU {g.index}: {g.error}" for g in state.gpus.values() if g.error]
    detail = "; ".join(errors) or state.gpus_error or "no GPU was found"
    return Refusal("gpu-unhealthy", detail, RETRY_GPU_S)


def _take_off(step: Step, job: Job) -> Consumer:
    """Take a running job off its consumer."""
    consumer = step.state.consumers[job.consumer]
    del consumer.running[job.id]
    consumer.last_used_at = step.at
    eviction.used(step.state, consumer)
    consumer.idle_wish_s = job.idle_unload_s
    step.cancel_timer(TimerKind.RUN, job.id)
    if consumer.policy.busy_timeout_s is not None:
        step.cancel_timer(TimerKind.BUSY, job.id)
    return consumer


def _dequeue(step: Step, consumer: Consumer, job: Job) -> None:
    consumer.waiting.remove(job)
    if not consumer.waiting:
        del step.state.awaited[consumer.name]
    step.state.waiting -= 1
    step.cancel_timer(TimerKind.WAIT, job.id)


def _end_waiting(step: Step, job: Job, outcome: Outcome, refusal: Refusal | None) -> None:
    _dequeue(step, step.state.consumers[job.consumer], job)
    job.phases = Phases(queue_s=step.at - job.arrived_at)
    job.granted_at = step.at
    _finish(step, job, outcome, refusal)


def _finish(step: Step, job: Job, outcome: Outcome, refusal: Refusal | None) -> None:
    del step.state.jobs[job.id]
    run_s = step.at - job.granted_at
    step.emit(Finish(job.id, job.consumer, outcome, refusal, job.phases, run_s, job.priority))


def _phases(consumer: Consumer, job: Job, at: float) -> Phases:
    """Split a job's wait by what its consumer's last swap did meanwhile."""
    waited_s = at - job.arrived_at
    times = consumer.swap_times
    if times is None:
        return Phases(queue_s=waited_s)
    evict_s = max(0.0, times.load_started_at - max(times.started_at, job.arrived_at))
    load_s = max(0.0, times.ready_at - max(times.load_started_at, job.arrived_at))
    return Phases(max(0.0, waited_s - evict_s - load_s), evict_s, load_s)
