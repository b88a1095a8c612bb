"""Each invariant is broken once by hand: an invariant that cannot fail holds nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mgpu.core import invariants
from mgpu.core.effects import Grant, Phases, StartLoad, StartUnload
from mgpu.core.invariants import InvariantError
from mgpu.core.model import ConsumerState as S
from mgpu.core.state import Claim, State, Swap
from tests.core.playbook import Playbook, absent, resident


def busy() -> Playbook:
    """a computes, b waits for the lock, c loads, d is absent."""
    play = Playbook(
        resident("a", 4000, max_queue=1), resident("b", 4000), absent("c", 4000), absent("d", 4000)
    )
    play.arrive("load c", "c")
    play.arrive("1", "a")
    play.arrive("2", "b")
    return play


def computes_while_absent(state: State) -> None:
    state.consumers["a"].state = S.ABSENT


def unloads_without_record(state: State) -> None:
    state.consumers["d"].state = S.UNLOADING


def computes_with_the_wrong_load(state: State) -> None:
    state.jobs["1"].load_key = "other"


def runs_too_many(state: State) -> None:
    job = state.consumers["b"].waiting.head(0.0, 1e9)[0]
    state.consumers["a"].running["2"] = job


def queue_too_long(state: State) -> None:
    for job in list(state.consumers["b"].waiting):
        state.consumers["a"].waiting.add(job)
        job.id = "other"
        state.consumers["a"].waiting.add(job)


def loads_unasked(state: State) -> None:
    del state.swaps["c"]


def loads_before_its_time(state: State) -> None:
    state.swaps["c"].load_started_at = None


def is_managed_by_nobody(state: State) -> None:
    policy = absent("d", vram_managed=True)
    state.consumers["d"].policy = policy


def forgets_a_job(state: State) -> None:
    del state.jobs["2"]


def miscounts(state: State) -> None:
    state.waiting += 1


def shares_a_token(state: State) -> None:
    job = state.consumers["b"].waiting.head(0.0, 1e9)[0]
    state.consumers["b"].waiting.remove(job)
    state.waiting -= 1
    job.token = 1
    state.consumers["b"].running["2"] = job


def runs_without_a_token(state: State) -> None:
    state.jobs["1"].token = 0


def forgets_the_lock(state: State) -> None:
    state.gpus[0].holders.clear()


def computes_beside_another(state: State) -> None:
    shares_a_token(state)
    state.consumers["b"].running["2"].token = 2
    state.next_token = 3
    state.gpus[0].holders["b"] = 0.0


def loads_what_is_resident(state: State) -> None:
    state.swaps["b"] = Swap("b", (0,), 0.0, Claim(0))


def makes_room_for_nobody(state: State) -> None:
    state.swaps["d"] = Swap("d", (0,), 0.0, Claim(0))


def forgets_who_leaves(state: State) -> None:
    state.leaving["d"] = state.consumers["d"]


def forgets_whom_jobs_wait_for(state: State) -> None:
    del state.awaited["b"]


def shares_a_victim(state: State) -> None:
    job = state.consumers["c"].waiting.head(0.0, 1e9)[0]
    state.consumers["c"].waiting.remove(job)
    state.consumers["d"].waiting.add(job)
    state.swaps["d"] = Swap("d", (0,), 0.0, Claim(0), victims={"b"})
    state.swaps["c"].victims = {"b"}


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (computes_while_absent, "a computes while absent"),
        (unloads_without_record, "d is unloading with unload None"),
        (computes_with_the_wrong_load, "a computes for a job that wants it loaded otherwise"),
        (runs_too_many, "a runs too many jobs"),
        (queue_too_long, "a's queue is too long"),
        (loads_unasked, "c loads unasked"),
        (loads_before_its_time, "c loads unasked"),
        (is_managed_by_nobody, "d manages itself but is absent"),
        (forgets_a_job, "a job is in two places or in none"),
        (miscounts, "3 wait"),
        (shares_a_token, "two leases share a token"),
        (runs_without_a_token, "strange tokens: {0}"),
        (forgets_the_lock, "GPU 0 is held by {}"),
        (computes_beside_another, "compute at once on GPU 0"),
        (loads_what_is_resident, "b is resident in a swap"),
        (makes_room_for_nobody, "room for d for nobody"),
        (shares_a_victim, "two swaps share a victim"),
        (forgets_who_leaves, "[] are leaving, not ['d']"),
        (forgets_whom_jobs_wait_for, "jobs wait for ['b', 'c'], not for ['c']"),
    ],
)
def test_a_contradiction_in_the_state_raises(
    corrupt: Callable[[State], None], message: str
) -> None:
    play = busy()
    invariants.check(play.state)
    corrupt(play.state)
    with pytest.raises(InvariantError) as raised:
        invariants.check(play.state)
    assert message in str(raised.value)


def test_two_may_compute_at_once_under_the_shared_lock() -> None:
    play = Playbook(resident("a"), resident("b"), lock="shared")
    play.arrive("1", "a")
    play.arrive("2", "b")
    invariants.check(play.state)


def grant(token: int) -> Grant:
    return Grant("1", "a", token, (0,), Phases())


def test_tokens_that_do_not_grow_raise() -> None:
    play = busy()
    invariants.check_effects(play.state, [grant(2), grant(3)])
    with pytest.raises(InvariantError, match="tokens do not grow"):
        invariants.check_effects(play.state, [grant(3), grant(2)])
    with pytest.raises(InvariantError, match="tokens do not grow"):
        invariants.check_effects(play.state, [grant(2), grant(2)])


def test_a_load_into_less_than_it_needs_raises_unless_it_was_wanted_so() -> None:
    play = busy()
    load = StartLoad("c", 1, (0,))
    invariants.check_effects(play.state, [load])
    play.state.gpus[0].free_mib = 3999
    with pytest.raises(InvariantError, match="c loads 4000 into 3999 MiB"):
        invariants.check_effects(play.state, [load])
    play.state.swaps["c"].forced = True
    invariants.check_effects(play.state, [load])


def test_an_unload_under_a_running_job_raises() -> None:
    play = busy()
    invariants.check_effects(play.state, [StartUnload("b", 1)])
    with pytest.raises(InvariantError, match="a is unloaded under"):
        invariants.check_effects(play.state, [StartUnload("a", 1)])


def test_nothing_begins_while_the_broker_is_paused() -> None:
    play = Playbook(resident("a"))
    play.pause()
    with pytest.raises(InvariantError, match="paused"):
        invariants.check_effects(play.state, [Grant("1", "a", 1, (0,), Phases())])
