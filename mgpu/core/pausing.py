"""The person wants the GPU: running jobs end, everybody leaves, and the queue is held.

While paused nothing is granted and nothing is loaded. Whoever can be unloaded is, pinned or not,
as soon as its running jobs have ended; what was being made room for is given up; a load under way
is waited for. Jobs that waited already go on waiting until their deadline, new ones are refused.

A pause outlives the program: only ``resume`` ends it (``mgpu.core.by_hand``).
"""

from __future__ import annotations

from mgpu.core import unloading
from mgpu.core.effects import Answer
from mgpu.core.model import ConsumerState as S
from mgpu.core.model import Refusal
from mgpu.core.state import Consumer, State
from mgpu.core.step import Step

AT_REST = frozenset({S.ABSENT, S.COOLDOWN, S.QUARANTINED})


def pause(step: Step, request: str) -> None:
    """Hold everything; answered when all who can leave have left."""
    if not step.state.paused:
        step.state.paused_at = step.at
    step.state.pause_requests.append(request)


def resume(step: Step) -> None:
    """Go on. Those who are on their way out leave all the same."""
    step.state.paused_at = None
    step.state.pause_kept = False
    _answer(step, None)


def watch(step: Step) -> None:
    """Take a pause as far as it goes now."""
    state = step.state
    if not state.paused:
        return
    if not state.gpus and state.gpus_error is None:
        return  # before the first figures, which come at once, nobody is seen to leave
    for name in [name for name, swap in state.swaps.items() if swap.load_started_at is None]:
        del state.swaps[name]
        state.consumers[name].retrying = False
    for consumer in state.consumers.values():
        done = consumer.state is S.RESIDENT and not consumer.running
        if done and consumer.can_be_unloaded:
            unloading.begin(step, consumer, "the broker is paused")
    if all(_at_rest(consumer) for consumer in state.consumers.values()):
        _answer(step, _stuck(state))


def _at_rest(consumer: Consumer) -> bool:
    if consumer.running:
        return False
    return consumer.state in AT_REST or not consumer.can_be_unloaded


def _stuck(state: State) -> Refusal | None:
    stuck = [c.name for c in state.consumers.values() if c.state is S.QUARANTINED]
    if not stuck:
        return None
    return Refusal("unload-failed", f"paused, but these may hold memory still: {', '.join(stuck)}")


def _answer(step: Step, refusal: Refusal | None) -> None:
    for request in step.state.pause_requests:
        step.emit(Answer(request, refusal))
    step.state.pause_requests.clear()
