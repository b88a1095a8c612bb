"""What the world reports without being asked to change: consumers about themselves, and the GPUs.

A consumer's own word on whether it is resident, and where, rules, except while a load or an unload
of it is under way, and except when the question was put before the last of these (its attempt is
old). An idle consumer that nothing listens for has no process and so no memory, unless whoever
starts and stops it knows better: then it is broken, holds all it had, and is stopped to be loaded
afresh.
"""

from __future__ import annotations

from mgpu.core import disturbance, measuring, swapping, unloading, unmeasured, vram
from mgpu.core.effects import GpuHealthChanged
from mgpu.core.events import ConsumerProbed, GpusLost, GpusRead, TimerKind
from mgpu.core.model import ConsumerState as S
from mgpu.core.model import GpuReading
from mgpu.core.state import Consumer, Gpu, State
from mgpu.core.step import Step

DEAF_S = 3.0
"""For so long probes find that a consumer runs and nothing listens, before it is stopped: one that
restarts by itself looks the same for a moment, and every failed job has it asked again."""


def consumer_probed(step: Step, event: ConsumerProbed) -> None:
    """Believe a consumer about itself."""
    consumer = step.state.consumers[event.consumer]
    consumer.healthy = event.reachable and event.healthy
    consumer.busy = _computes_for_others(consumer, event)
    if event.attempt != consumer.attempt or consumer.policy.vram_managed:
        return
    broken = event.alive and not event.reachable
    lasts = _lasts(consumer, broken=broken, at=step.at)
    _found(step.state, consumer, event)
    # One that cannot be asked and has restarted is taken for empty, unless its memory is seen.
    empty = event.resident is False and not measuring.holds_weights(consumer)
    gone = not event.reachable or empty
    match consumer.state:
        case S.UNKNOWN if gone:
            step.move(consumer, S.ABSENT, _why(event))
        case S.UNKNOWN:
            # One that does not tell may hold its memory: only this guess can do no harm.
            swapping.resident_by_itself(step, consumer, "found running")
        case S.RESIDENT if broken and event.resident is not False and not consumer.running:
            if lasts:
                unloading.begin(step, consumer, "runs, but nothing listens", stop=True)
        case S.RESIDENT if gone and not consumer.running and not _about_to_load(consumer, event):
            disturbance.moved(step.state, consumer)
            vram.owe_what_vanished(step.state, consumer, step.at)
            _vanished(consumer)
            step.move(consumer, S.ABSENT, _why(event))
        case S.QUARANTINED if gone and not broken:
            vram.owe_what_vanished(step.state, consumer, step.at)
            unloading.absent(step, consumer, _why(event))
            _vanished(consumer)
        case S.ABSENT | S.COOLDOWN if event.resident:
            disturbance.moved(step.state, consumer)
            if consumer.state is S.COOLDOWN:
                step.cancel_timer(TimerKind.COOLDOWN, consumer.name, consumer.attempt)
            swapping.resident_by_itself(step, consumer, "says that it is resident")
        case _:
            pass


def gpus_read(step: Step, event: GpusRead) -> None:
    """Take new figures; a GPU that is not among them has gone away."""
    state = step.state
    before = _errors(state)
    state.gpus_error = None
    seen = {reading.index for reading in event.readings}
    for reading in event.readings:
        gpu = state.gpus.setdefault(reading.index, Gpu(reading.index))
        gpu.read_at = step.at
        gpu.asked_at = step.at if event.asked_at is None else event.asked_at
        _take(gpu, reading)
    for gpu in state.gpus.values():
        if gpu.index not in seen:
            gpu.error = "it is not there any more"
            gpu.read_at = step.at
        elif gpu.healthy:
            vram.believe_the_gpu(state, gpu)
    _tell_health(step, before)
    for consumer in state.consumers.values():
        # One asked to unload before the first reading has no figures to be judged by: it is placed
        # when it has gone.
        if not consumer.gpus and consumer.unload is None:
            consumer.gpus = _home(state, consumer)
    measuring.watch(step, event)
    unmeasured.bill(state)
    for consumer in measuring.seen(state):
        if measuring.appears(consumer, step.at) and consumer.name not in state.swaps:
            disturbance.moved(state, consumer)
            swapping.resident_by_itself(step, consumer, "its processes hold its memory")
        elif measuring.vanishes(consumer):
            disturbance.moved(state, consumer)
            _vanished(consumer)
            step.move(consumer, S.ABSENT, "its processes have let go of its memory")


def gpus_lost(step: Step, event: GpusLost) -> None:
    """No figures: what is known is stale, and nothing is admitted on it."""
    before = _errors(step.state)
    step.state.gpus_error = event.error
    for gpu in step.state.gpus.values():
        gpu.error = event.error
        gpu.read_at = step.at
    _tell_health(step, before)


def _errors(state: State) -> dict[int | None, str | None]:
    """What is wrong with each GPU; None stands for all when none was ever seen."""
    if not state.gpus:
        return {None: state.gpus_error}
    return {index: gpu.error for index, gpu in state.gpus.items()}


def _tell_health(step: Step, before: dict[int | None, str | None]) -> None:
    after = _errors(step.state)
    for gpu in before | after:
        error = after.get(gpu)
        if (error is None) is not (before.get(gpu) is None):
            step.emit(GpuHealthChanged(gpu, error))


def _why(event: ConsumerProbed) -> str:
    return "nothing listens" if not event.reachable else "says that it is not resident"


def _lasts(consumer: Consumer, *, broken: bool, at: float) -> bool:
    """Whether it has been broken for so long that only a stop can mend it."""
    if not broken:
        consumer.deaf_since = None
        return False
    if consumer.deaf_since is None:
        consumer.deaf_since = at
    return at - consumer.deaf_since >= DEAF_S


def _computes_for_others(consumer: Consumer, event: ConsumerProbed) -> bool:
    """Whether it said that it computes, and not because of a job of the broker's."""
    return (
        event.busy
        and event.attempt == consumer.attempt
        and not consumer.running
        and consumer.last_used_at < event.asked_at
    )


def _about_to_load(consumer: Consumer, event: ConsumerProbed) -> bool:
    """Whether it is no wonder that it is not resident: the job that loads it still waits."""
    return event.reachable and not consumer.policy.can_load and bool(consumer.waiting)


def _found(state: State, consumer: Consumer, event: ConsumerProbed) -> None:
    """Believe a consumer about where it lives, unless something is under way there."""
    idle = not consumer.running and consumer.unload is None and consumer.name not in state.swaps
    gpus = event.gpus or ()
    if gpus and idle and all(index in state.gpus for index in gpus):
        consumer.gpus = gpus


def _vanished(consumer: Consumer) -> None:
    """A process that ended gave everything back, and its successor is to be measured again."""
    consumer.leftover_mib = 0
    if not consumer.policy.learns:
        consumer.measured_mib = None
    consumer.attempt += 1


def _take(gpu: Gpu, reading: GpuReading) -> None:
    gpu.error = reading.error
    gpu.uuid = reading.uuid or gpu.uuid
    gpu.name = reading.name or gpu.name
    gpu.foreign = reading.foreign
    if reading.error is None:
        gpu.total_mib = reading.total_mib
        gpu.free_mib = reading.free_mib


def _home(state: State, consumer: Consumer) -> tuple[int, ...]:
    """Where a consumer that was not placed by the broker is taken to live.

    With several GPUs to choose from that is the first one, as CUDA's default device is.
    """
    choice = consumer.policy.gpus or tuple(sorted(state.gpus)[:1])
    return choice if all(index in state.gpus for index in choice) else ()
