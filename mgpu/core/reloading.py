"""Other rules while everything runs: limits change, consumers come and go.

Jobs that wait or run live on, also where a limit is now lower than their number: it holds for those
who come. A consumer that the rules do not name any more takes no more jobs: those that wait for it
are refused, those that run end in peace, then it is unloaded if there is a way to, and forgotten.
What it holds after that is somebody else's memory like any other. Consumers are taken to be the
same ones as before when they have the same name; one whose load is another one now leaves as soon
as it is idle, since what it holds serves nobody any more (``mgpu.core.residency``).
"""

from __future__ import annotations

from collections.abc import Mapping

from mgpu.core import admission, keepalive, preloading, unloading
from mgpu.core.effects import Forget
from mgpu.core.events import TimerKind
from mgpu.core.model import ConsumerPolicy, Policy
from mgpu.core.model import ConsumerState as S
from mgpu.core.state import Consumer, State
from mgpu.core.step import Step

AT_REST = frozenset({S.ABSENT, S.COOLDOWN, S.QUARANTINED})
"""Nothing is under way, and nothing more can be asked of it."""


def first_state(policy: ConsumerPolicy) -> S:
    """Where a consumer is taken to be when it is first heard of."""
    return S.RESIDENT if policy.vram_managed else policy.initially


def change(step: Step, policy: Policy) -> None:
    """Live by these rules from now on; who is new is taken in, who is missing has to go."""
    state = step.state
    state.policy = policy
    state.kept_waiting = state.waiting
    known = state.consumers
    kept = {name: _taken_in(step, known, rules) for name, rules in policy.consumers.items()}
    gone = {name: consumer for name, consumer in known.items() if name not in kept}
    state.consumers = {**kept, **gone}
    for consumer in gone.values():
        _retire(step, consumer)


def watch(step: Step) -> None:
    """Let those leave who have to go."""
    everybody = step.state.consumers.values()
    for consumer in [c for c in everybody if c.retired or c.loaded_by != c.policy.load_key]:
        present = consumer.state in {S.RESIDENT, S.UNKNOWN}
        if consumer.retired and present and consumer.can_be_unloaded:
            unloading.drain(step, consumer, "taken out of the configuration")
        elif consumer.outdated and consumer.state is S.RESIDENT and not consumer.busy:
            unloading.drain(step, consumer, "its load has changed in the configuration")


def forget(step: Step) -> None:
    """Forget those who had to go and have gone; to be the last thing done with an event."""
    state = step.state
    if len(state.consumers) == len(state.policy.consumers):
        return  # nobody but whom the rules name
    for consumer in [c for c in state.consumers.values() if c.retired and _has_gone(state, c)]:
        for kind in (TimerKind.COOLDOWN, TimerKind.QUARANTINE, TimerKind.MIN_RESIDENT):
            step.cancel_timer(kind, consumer.name, consumer.attempt)
        unloading.answer(step, consumer, None)
        state.rooms.pop(consumer.name, None)
        state.loaded.pop(consumer.name, None)
        state.leaving.pop(consumer.name, None)
        del state.consumers[consumer.name]
        step.emit(Forget(consumer.name))


def _taken_in(step: Step, known: Mapping[str, Consumer], policy: ConsumerPolicy) -> Consumer:
    consumer = known.get(policy.name)
    if consumer is None:
        return Consumer(policy, first_state(policy))
    old, consumer.policy = consumer.policy, policy
    came_back, consumer.retired = consumer.retired, False
    consumer.kept_running = len(consumer.running)
    consumer.kept_waiting = len(consumer.waiting)
    if came_back or policy.pinned is not old.pinned:
        preloading.pin(step, consumer, pinned=policy.pinned)
    if policy.idle_unload_s != old.idle_unload_s:
        keepalive.stop_clock(step, consumer)
    if policy.busy_timeout_s is None:
        for job in consumer.running:
            step.cancel_timer(TimerKind.BUSY, job)
    return consumer


def _retire(step: Step, consumer: Consumer) -> None:
    consumer.retired = True
    preloading.pin(step, consumer, pinned=False)
    admission.refuse_waiting(step, consumer, admission.gone(consumer.name))


def _has_gone(state: State, consumer: Consumer) -> bool:
    name = consumer.name
    if consumer.running or name in state.swaps:
        return False
    if any(name in swap.victims for swap in state.swaps.values()):
        return False
    here_to_stay = consumer.state in {S.RESIDENT, S.UNKNOWN} and not consumer.can_be_unloaded
    return consumer.state in AT_REST or here_to_stay
