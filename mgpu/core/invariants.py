"""What must hold between any two events; checked after every one in tests and simulation."""

from __future__ import annotations

from mgpu.core import vram
from mgpu.core.effects import Effect, Grant, StartLoad, StartUnload
from mgpu.core.model import ConsumerState as S
from mgpu.core.model import LockMode
from mgpu.core.state import Consumer, State


class InvariantError(AssertionError):
    """The scheduler's state contradicts itself."""


def check(state: State) -> None:
    """Raise ``InvariantError`` naming what does not hold."""
    for consumer in state.consumers.values():
        _check_consumer(state, consumer)
    _check_jobs(state)
    _check_locks(state)
    _check_swaps(state)
    leaving = {c.name: c for c in state.consumers.values() if c.unload is not None}
    if state.leaving != leaving:
        raise InvariantError(f"{[*leaving]} are leaving, not {[*state.leaving]}")
    awaited = {c.name: c for c in state.consumers.values() if c.waiting}
    if state.awaited != awaited:
        raise InvariantError(f"jobs wait for {[*awaited]}, not for {[*state.awaited]}")


def check_effects(state: State, effects: list[Effect]) -> None:
    """Raise ``InvariantError`` when an effect just decided breaks a promise."""
    tokens = [effect.token for effect in effects if isinstance(effect, Grant)]
    if tokens != sorted(set(tokens)):
        raise InvariantError(f"tokens do not grow: {tokens}")
    for effect in effects:
        match effect:
            case Grant() | StartLoad() if state.paused:
                raise InvariantError(f"paused, and yet: {effect}")
            case StartLoad(name, _, gpus, _) if not state.swaps[name].forced:
                need_mib = vram.share_mib(state.consumers[name].footprint_mib, gpus)
                for index in gpus:
                    free_mib = state.gpus[index].free_mib - state.policy.cushion_mib
                    if need_mib > free_mib:
                        raise InvariantError(f"{name} loads {need_mib} into {free_mib} MiB")
            case StartUnload(name) if state.consumers[name].running:
                running = sorted(state.consumers[name].running)
                raise InvariantError(f"{name} is unloaded under {running}")
            case _:
                pass


def _check_consumer(state: State, consumer: Consumer) -> None:
    name, where = consumer.name, consumer.state
    if consumer.running and where not in {S.RESIDENT, S.DRAINING}:
        raise InvariantError(f"{name} computes while {where}")
    if (consumer.unload is not None) is not (where in {S.UNLOADING, S.QUARANTINED}):
        raise InvariantError(f"{name} is {where} with unload {consumer.unload}")
    if any(job.load_key not in {None, consumer.loaded_key} for job in consumer.running.values()):
        raise InvariantError(f"{name} computes for a job that wants it loaded otherwise")
    if len(consumer.running) > max(consumer.policy.concurrency, consumer.kept_running):
        raise InvariantError(f"{name} runs too many jobs")
    if len(consumer.waiting) > max(consumer.policy.max_queue, consumer.kept_waiting):
        raise InvariantError(f"{name}'s queue is too long")
    if where is S.LOADING:
        swap = state.swaps.get(name)
        if swap is None or swap.load_started_at is None:
            raise InvariantError(f"{name} loads unasked")
    if consumer.policy.vram_managed and where not in {S.UNKNOWN, S.RESIDENT}:
        raise InvariantError(f"{name} manages itself but is {where}")


def _check_jobs(state: State) -> None:
    waiting = [job.id for c in state.consumers.values() for job in c.waiting]
    running = [job for c in state.consumers.values() for job in c.running.values()]
    everybody = sorted(waiting + [job.id for job in running])
    if everybody != sorted(state.jobs):
        raise InvariantError("a job is in two places or in none")
    if not state.waiting == len(waiting) <= max(state.policy.max_queue, state.kept_waiting):
        raise InvariantError(f"{state.waiting} wait")
    tokens = {job.token for job in running}
    if len(tokens) != len(running):
        raise InvariantError("two leases share a token")
    if not all(0 < token < state.next_token for token in tokens):
        raise InvariantError(f"strange tokens: {tokens}")


def _check_locks(state: State) -> None:
    for gpu in state.gpus.values():
        here = [c for c in state.consumers.values() if gpu.index in c.gpus]
        computing = {c.name for c in here if c.running}
        stopping = {c.name for c in here if c.stopping}
        if not computing <= gpu.holders.keys() <= computing | stopping:
            raise InvariantError(f"GPU {gpu.index} is held by {gpu.holders}")
        if state.policy.lock is LockMode.EXCLUSIVE and len(gpu.holders) > 1:
            raise InvariantError(f"{gpu.holders} compute at once on GPU {gpu.index}")


def _check_swaps(state: State) -> None:
    for name, swap in state.swaps.items():
        target = state.consumers[name]
        expected = S.ABSENT if swap.load_started_at is None else S.LOADING
        if target.state is not expected:
            raise InvariantError(f"{name} is {target.state} in a swap")
        if not target.waiting and target.state is not S.LOADING:
            raise InvariantError(f"room for {name} for nobody")
        for other in state.swaps.values():
            if other is not swap and swap.victims & other.victims:
                raise InvariantError("two swaps share a victim")
