from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from mgpu.config.model import SchedulerConfig
from mgpu.core.model import ConsumerPolicy, ConsumerState, LockMode, Order, Policy
from mgpu.core.scheduler import Scheduler
from mgpu.simulation import engine, policies
from mgpu.simulation.engine import Conditions, StuckError
from mgpu.simulation.outcome import Activity, Interval
from mgpu.simulation.workload import MIXES, Arrivals, Rules, make_trace
from tests.simulation.tiny import ABA, replay, service, trace, waits


def test_strict_order_swaps_for_every_job() -> None:
    result = replay(trace(*ABA), Order.ARRIVAL)
    # a loads 0-2 and computes 2-3; a out 3-4, b loads 4-6, computes 6-7; and so back to a.
    assert waits(result) == [2.0, 5.5, 9.0]
    assert (result.loads, result.unloads, result.reload_s) == (3, 2, 8.0)
    assert result.ended_s == 11.0


def test_resident_first_serves_the_resident_before_it_swaps() -> None:
    result = replay(trace(*ABA), Order.RESIDENT_FIRST)
    # a computes 2-3 and 3-4; a out 4-5, b loads 5-7.
    assert waits(result) == [2.0, 6.5, 2.0]
    assert (result.loads, result.unloads, result.reload_s) == (2, 1, 5.0)


def test_who_is_resident_at_the_start_is_not_loaded() -> None:
    result = replay(trace(*ABA, resident=("b",)), Order.ARRIVAL)
    # b out 0-1, a loads 1-3, computes 3-4.
    assert waits(result)[0] == 3.0
    assert result.loads == 3
    assert waits(replay(trace((0.0, "b", 1.0), resident=("b",)), Order.ARRIVAL)) == [0.0]


def test_memory_that_comes_back_late_holds_the_next_load_up() -> None:
    result = replay(trace(*ABA), Order.RESIDENT_FIRST, Conditions(memory_lag_s=0.75))
    assert waits(result) == [2.0, 7.25, 2.0]


def test_priorities_count() -> None:
    jobs = trace((0.0, "a", 1.0), (0.1, "a", 1.0), (0.2, "a", 1.0))
    urgent = replace(jobs.arrivals[2], priority=1)
    result = replay(replace(jobs, arrivals=(*jobs.arrivals[:2], urgent)), Order.ARRIVAL)
    assert waits(result) == [3.0, 3.9, 1.8]


def test_two_gpus_swap_side_by_side() -> None:
    services = (service("a", gpus=(0,)), service("b", gpus=(1,)))
    what = trace((0.0, "a", 1.0), (0.0, "b", 1.0), total_mib=(1000, 1000), services=services)
    assert waits(replay(what, Order.ARRIVAL)) == [2.0, 2.0]
    shared = Conditions(shared_bandwidth=True)
    assert waits(replay(what, Order.ARRIVAL, shared)) == [4.0, 4.0]


def test_a_job_that_can_never_fit_is_refused() -> None:
    services = (service("a"), service("huge", 2000))
    result = replay(trace((0.0, "huge", 1.0), (0.0, "a", 1.0), services=services), Order.ARRIVAL)
    assert (result.refused, waits(result)) == (1, [2.0])


def test_jobs_expire_when_a_longest_wait_is_set() -> None:
    what = trace(*ABA)
    rules = policies.rules(SchedulerConfig(order=Order.ARRIVAL, max_wait_s=6.0), what)
    result = engine.replay(what, rules, check=True)
    assert (result.refused, waits(result)) == (1, [2.0, 5.5])


def test_lanes_tell_who_did_what() -> None:
    result = replay(trace(*ABA), Order.RESIDENT_FIRST, lanes=True)
    assert result.lanes == {
        "a": [
            Interval(0.0, 2.0, Activity.LOADING),
            Interval(2.0, 3.0, Activity.COMPUTING),
            Interval(3.0, 4.0, Activity.COMPUTING),
            Interval(4.0, 5.0, Activity.UNLOADING),
        ],
        "b": [Interval(5.0, 7.0, Activity.LOADING), Interval(7.0, 8.0, Activity.COMPUTING)],
    }


def test_jobs_that_ran_together_run_together() -> None:
    services = (service("a", rules=Rules(concurrency=3)), service("b"))
    jobs = [(0.0, "a", 5.0)] * 4
    result = replay(trace(*jobs, services=services, resident=("a",)), Order.ARRIVAL, lanes=True)
    assert waits(result) == [0.0, 0.0, 0.0, 5.0]
    assert {interval.activity for interval in result.lanes["a"]} == {Activity.COMPUTING}


def test_a_shared_lock_lets_residents_compute_together() -> None:
    what = trace((0.0, "a", 5.0), (1.0, "b", 1.0), total_mib=(1200,), resident=("a", "b"))
    assert waits(replay(what, Order.ARRIVAL)) == [0.0, 4.0]
    assert waits(replay(replace(what, lock=LockMode.SHARED), Order.ARRIVAL)) == [0.0, 0.0]


def test_who_is_pinned_is_loaded_and_stays() -> None:
    services = (service("a", rules=Rules(pinned=True)), service("b"))
    result = replay(trace((5.0, "b", 1.0), (6.0, "a", 1.0), services=services), Order.ARRIVAL)
    assert (result.loads, result.refused) == (1, 1)
    assert [run.consumer for run in result.runs] == ["a"]


def test_who_may_coexist_is_not_evicted() -> None:
    services = (service("a"), service("b", rules=Rules(can_coexist_with=frozenset({"a"}))))
    result = replay(trace((0.0, "b", 1.0), services=services, resident=("a",)), Order.ARRIVAL)
    assert (result.unloads, result.refused) == (0, 1)


def test_who_cannot_be_unloaded_stays() -> None:
    services = (service("a", rules=Rules(can_unload=False)), service("b"))
    result = replay(trace((0.0, "b", 1.0), services=services, resident=("a",)), Order.ARRIVAL)
    assert (result.unloads, result.refused) == (0, 1)


def test_what_stays_after_an_unload_takes_room() -> None:
    services = (service("a", rules=Rules(residual_mib=150)), service("b"), service("c", 300))
    what = trace((0.0, "b", 1.0), (4.0, "c", 1.0), services=services, resident=("a",))
    # 150 MiB of a and 600 of b leave 250: b has to go for c.
    assert replay(what, Order.ARRIVAL).unloads == 2
    without = replace(what, services={**what.services, "a": service("a")})
    assert replay(without, Order.ARRIVAL).unloads == 1


def test_a_residual_is_given_back_with_the_next_load() -> None:
    services = (service("a", rules=Rules(residual_mib=300)), service("b"))
    jobs = [(at_s, name, 1.0) for at_s, name in ((0.0, "a"), (10.0, "b"), (20.0, "a"), (30.0, "b"))]
    result = replay(trace(*jobs, services=services), Order.ARRIVAL, Conditions(memory_lag_s=0.5))
    assert (result.loads, result.unloads, result.refused) == (4, 3, 0)


def test_a_first_job_that_loads_takes_the_memory() -> None:
    services = (service("a", load_s=0.0, rules=Rules(can_load=False)), service("b"))
    jobs = ((0.0, "a", 5.0), (0.0, "a", 1.0), (1.0, "b", 1.0))
    result = replay(trace(*jobs, services=services), Order.ARRIVAL)
    # Its second job follows at once; then it is read, leaves for b, and that loads for 2 s.
    assert waits(result) == [0.0, 5.0, 8.001]
    assert (result.loads, result.unloads) == (2, 1)


def test_who_manages_its_memory_itself_is_neither_loaded_nor_evicted() -> None:
    services = (service("a", 0, load_s=0.0, rules=Rules(vram_managed=True)), service("b"))
    result = replay(trace((0.0, "a", 1.0), (0.0, "b", 1.0), services=services), Order.ARRIVAL)
    assert (result.loads, result.unloads) == (1, 0)


def test_who_is_idle_for_long_enough_is_unloaded() -> None:
    services = (service("a", rules=Rules(idle_unload_s=10.0)), service("b", 100))
    what = trace((0.0, "a", 1.0), (60.0, "b", 1.0), services=services)
    assert replay(what, Order.ARRIVAL).unloads == 1


def test_loads_that_nobody_asked_for_are_no_jobs_of_the_trace() -> None:
    jobs = [(20.0 * number, name, 1.0) for number, name in enumerate("abababab")]
    what = trace(*jobs, total_mib=(1500,))
    rules = policies.rules(SchedulerConfig(restore_when_idle=True), replace(what, resident=("b",)))
    result = engine.replay(replace(what, resident=("b",)), rules, check=True)
    assert (len(result.runs), result.refused) == (8, 0)


@pytest.mark.parametrize("order", [Order.ARRIVAL, Order.RESIDENT_FIRST])
@pytest.mark.parametrize("mix", MIXES)
def test_every_job_is_served_once_and_computes_for_its_time(mix: str, order: Order) -> None:
    what = make_trace(MIXES[mix], Arrivals.BURSTS, utilisation=0.8, jobs=150, seed=7)
    result = replay(what, order, Conditions(memory_lag_s=0.3))
    assert sorted(run.number for run in result.runs) == list(range(150))
    assert result.refused == 0
    for run in result.runs:
        assert run.wait_s >= 0
        expected_s = what.arrivals[run.number].service_s
        assert run.ended_s - run.started_s == pytest.approx(expected_s)
    ordered = sorted(result.runs, key=lambda run: run.started_s)
    for before, after in pairwise(ordered):
        assert before.ended_s <= after.started_s + 1e-9, "two compute on one GPU"


def test_the_same_trace_gives_the_same_result() -> None:
    what = make_trace(MIXES["eight"], Arrivals.POISSON, utilisation=0.5, jobs=100, seed=1)
    assert replay(what, Order.RESIDENT_FIRST) == replay(what, Order.RESIDENT_FIRST)


def test_a_scheduler_that_forgets_its_jobs_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def sit_still(self: Scheduler, event: object) -> list[object]:
        return []

    monkeypatch.setattr(Scheduler, "handle", sit_still)
    consumer = ConsumerPolicy(name="a", footprint_mib=1, initially=ConsumerState.ABSENT)
    what = trace((0.0, "a", 1.0), services=(service("a"),))
    with pytest.raises(StuckError, match="1 jobs wait"):
        engine.replay(what, Policy(consumers={"a": consumer}))
