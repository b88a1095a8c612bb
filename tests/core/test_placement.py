from __future__ import annotations

from typing import Any

import pytest

from mgpu.core import placement
from mgpu.core.effects import Evicted
from mgpu.core.model import ConsumerPolicy
from tests.core.playbook import Playbook, absent, resident, unknown


def used_in_order(*names: str, target: ConsumerPolicy, **rules: Any) -> Playbook:
    """Residents of 6000 MiB that fill a GPU of 24000, used one after the other."""
    residents = [resident(name, 6000, **rules.get(name, {})) for name in sorted(names)]
    play = Playbook(*residents, target, total_mib=24000)
    for name in names:
        play.use(name)
    return play


def test_of_four_consumers_the_least_recently_used_goes_first() -> None:
    play = used_in_order("c", "a", "d", "b", target=absent("new", 6000))
    assert play.arrive("1", "new") == ["unload c"]


def test_use_is_the_end_of_a_job_and_not_its_arrival() -> None:
    play = Playbook(
        resident("a", 8000), resident("b", 8000), absent("new"), total_mib=16000, lock="shared"
    )
    play.arrive("1", "a")
    play.after(1.0)
    play.arrive("2", "b")
    play.after(1.0)
    play.end("2")
    play.after(1.0)
    play.end("1")
    assert play.arrive("3", "new") == ["unload b"]


def test_who_was_never_used_goes_before_everybody_and_ties_are_broken_by_name() -> None:
    play = Playbook(resident("b", 6000), resident("a", 6000), absent("new", 6000), total_mib=12000)
    assert play.arrive("1", "new") == ["unload a"]


def test_not_one_more_than_needed_is_evicted() -> None:
    """The two oldest were to go, until the second turned out to suffice alone."""
    play = Playbook(
        resident("old", 2000), resident("mid", 8000), resident("young", 6000), absent("new"),
        total_mib=16000,
    )  # fmt: skip
    for name in ("old", "mid", "young"):
        play.use(name)
    assert play.arrive("1", "new") == ["unload mid"]
    assert play.facts(Evicted) == [Evicted("mid", "new", 8000)]


def test_the_whole_set_is_asked_to_leave_at_once() -> None:
    play = used_in_order("a", "b", "c", "d", target=absent("new", 12000))
    assert play.arrive("1", "new") == ["unload a", "unload b"]
    assert play.state.evictions == 2


@pytest.mark.parametrize(
    "rule",
    [
        {"pinned": True},
        {"vram_managed": True, "can_load": False, "can_unload": False},
        {"can_unload": False},
    ],
    ids=["pinned", "vram-managed", "without a way to be unloaded"],
)
def test_who_must_stay_is_never_evicted(rule: dict[str, bool]) -> None:
    play = used_in_order("a", "b", "c", "d", target=absent("new", 6000), a=rule)
    assert play.arrive("1", "new") == ["unload b"]


def test_who_may_coexist_with_the_target_is_never_evicted_for_it() -> None:
    target = absent("new", 6000, can_coexist_with=frozenset({"a", "b"}))
    play = used_in_order("a", "b", "c", "d", target=target)
    assert play.arrive("1", "new") == ["unload c"]


def test_a_target_that_coexists_with_all_evicts_nobody() -> None:
    target = absent("new", 6000, can_coexist_with=frozenset({"*"}))
    play = used_in_order("a", "b", "c", "d", target=target)
    assert play.arrive("1", "new") == ["rejected 1: vram-unavailable"]
    assert set(play.states().values()) == {"resident", "absent"}


def test_a_busy_consumer_is_never_evicted() -> None:
    play = Playbook(
        resident("a", 6000), resident("b", 6000), absent("new", 6000), total_mib=12000,
        lock="shared",
    )  # fmt: skip
    play.use("a")
    play.use("b")
    play.arrive("1", "a")
    assert play.arrive("2", "new") == ["unload b"]


def test_a_loading_consumer_is_never_evicted() -> None:
    play = Playbook(absent("a"), absent("new", 20000), resident("b", 4000))
    play.arrive("1", "a")
    assert play.states()["a"] == "loading"
    assert play.arrive("2", "new") == []
    assert play.comes("a") == ["grant 1"]


def test_if_no_permitted_set_suffices_nobody_is_touched() -> None:
    play = Playbook(
        resident("free", 6000),
        resident("pinned", 6000, pinned=True),
        resident("own", 4000, vram_managed=True),
        resident("fixed", 2000, can_unload=False),
        resident("friend", 2000),
        absent("new", 14000, can_coexist_with=frozenset({"friend"})),
        total_mib=20000,
    )
    assert play.arrive("1", "new") == ["rejected 1: vram-unavailable"]
    refusal = play.ended["1"].refusal
    assert refusal is not None
    assert refusal.retry_after_s == placement.RETRY_VRAM_S
    assert refusal.detail == (
        "new needs 14000 MiB and not enough can be freed; these stay: "
        "fixed (cannot be unloaded), friend (may coexist), own (manages its own VRAM), "
        "pinned (pinned)"
    )
    assert play.state.evictions == 0


def test_one_that_did_not_give_its_memory_back_is_named() -> None:
    play = Playbook(resident("stuck", 12000), absent("new", 20000))
    play.unload_by_hand("stuck")
    play.unloaded("stuck", error="no")
    assert play.arrive("1", "new") == ["rejected 1: vram-unavailable"]
    refusal = play.ended["1"].refusal
    assert refusal is not None
    assert refusal.detail.endswith("these stay: stuck (did not give its memory back)")


def test_memory_that_other_processes_hold_is_not_to_be_had() -> None:
    play = Playbook(absent("new", 20000), free_mib=12000)
    assert play.arrive("1", "new") == ["rejected 1: vram-unavailable"]
    refusal = play.ended["1"].refusal
    assert refusal is not None
    assert refusal.detail.endswith("other processes hold the memory")


def test_a_target_waits_for_a_busy_victim_up_to_its_deadline() -> None:
    play = Playbook(resident("a"), absent("new"), total_mib=8000, lock="shared", max_wait_s=60.0)
    play.arrive("1", "a")
    assert play.arrive("2", "new") == []
    assert play.arrive("3", "new", max_wait_s=100.0) == []
    play.after(30.0)
    play.leave("2")
    assert play.after(30.0) == ["expired 3: wait-expired"]
    play.arrive("4", "new")
    assert play.end("1") == ["done 1", "unload a"]


def test_a_busy_gpu_is_waited_for_whatever_may_be_had_there() -> None:
    play = Playbook(resident("a", pinned=True), absent("new"), total_mib=8000)
    play.arrive("1", "a")
    assert play.arrive("2", "new") == []
    assert play.end("1") == ["done 1", "rejected 2: vram-unavailable"]


def test_who_has_not_been_asked_yet_is_waited_for() -> None:
    play = Playbook(unknown("a"), absent("new"), total_mib=8000)
    assert play.arrive("1", "new") == []
    assert play.probe("a", resident=True) == ["unload a"]


def test_while_somebody_leaves_nobody_else_is_asked_to() -> None:
    """The job that a victim left for has gone; its memory comes all the same."""
    play = Playbook(resident("a"), resident("b"), absent("new"), total_mib=16000)
    assert play.arrive("1", "new") == ["unload a"]
    play.leave("1")
    assert play.arrive("2", "new") == []
    assert play.leaves("a") == ["load new"]
    assert play.states()["b"] == "resident"


def test_nobody_waits_for_a_consumer_that_failed_to_unload_before() -> None:
    play = Playbook(resident("a"), resident("b"), absent("new"), total_mib=16000)
    play.unload_by_hand("a")
    play.unload_fails("a")
    assert play.after(1.0) == ["unload a"]
    assert play.arrive("1", "new") == ["unload b"]


def test_a_pinned_consumer_that_a_person_unloads_is_waited_for() -> None:
    play = Playbook(resident("a", pinned=True), absent("new"), total_mib=8000)
    play.unload_by_hand("a")
    assert play.arrive("1", "new") == []
    assert play.leaves("a") == ["answer r", "load new"]


def test_a_freshly_loaded_consumer_is_no_victim_for_a_while() -> None:
    play = Playbook(absent("a"), absent("b"), total_mib=8000, min_resident_s=10.0)
    play.arrive("1", "a")
    play.comes("a")
    play.after(4.0)
    play.end("1")
    assert play.arrive("2", "b") == []
    assert play.after(5.9) == []
    assert play.after(0.1) == ["unload a"]


def test_no_more_than_max_resident_consumers_stay_although_memory_is_left() -> None:
    play = Playbook(resident("a", 100), resident("b", 100), absent("c", 100), max_resident=2)
    play.use("a")
    play.use("b")
    assert play.arrive("1", "c") == ["unload a"]
    assert play.leaves("a") == ["load c"]
    play.comes("c")
    assert [name for name, state in play.states().items() if state == "resident"] == ["b", "c"]


def test_max_resident_counts_loads_under_way() -> None:
    play = Playbook(
        absent("a", 100), absent("b", 100), absent("c", 100), max_resident=2, prefetch=True
    )
    assert play.arrive("1", "a") == ["load a"]
    assert play.arrive("2", "b") == ["load b"]
    assert play.arrive("3", "c") == []
    assert play.comes("a") == ["grant 1"]
    assert play.end("1") == ["done 1", "unload a"]
    assert play.leaves("a") == ["load c"]


def test_max_resident_waits_for_who_is_leaving_on_another_gpu() -> None:
    play = Playbook(
        resident("a", 100, gpus=(0,)), resident("b", 100, gpus=(1,)), absent("c", 100, gpus=(1,)),
        total_mib=(24576, 24576), max_resident=2,
    )  # fmt: skip
    play.unload_by_hand("a")
    assert play.arrive("1", "c") == []
    assert play.leaves("a") == ["answer r", "load c on 1"]


def test_max_resident_counts_a_victim_that_failed_to_leave() -> None:
    play = Playbook(resident("a", 100), absent("b", 100), max_resident=1)
    assert play.arrive("1", "b") == ["unload a"]
    assert play.unload_fails("a") == ["rejected 1: vram-unavailable"]


def test_max_resident_takes_another_victim_for_one_that_failed_to_leave() -> None:
    play = Playbook(resident("a", 100), resident("b", 100), absent("c", 100), max_resident=2)
    play.use("a")
    play.use("b")
    assert play.arrive("1", "c") == ["unload a"]
    assert play.unload_fails("a") == ["unload b"]
    assert play.leaves("b") == ["load c"]


# Several GPUs


def test_a_consumer_goes_where_most_memory_is_free() -> None:
    play = Playbook(resident("a"), absent("new"), total_mib=(24576, 24576))
    assert play.arrive("1", "new") == ["load new on 1"]
    assert play["new"].gpus == (1,)


def test_a_consumer_goes_where_nobody_has_to_leave() -> None:
    play = Playbook(resident("a", 20000), absent("new", 10000), total_mib=(24576, 12000))
    assert play.arrive("1", "new") == ["load new on 1"]


def test_a_consumer_stays_on_the_gpu_it_is_given() -> None:
    play = Playbook(resident("a", 20000), absent("new", gpus=(0,)), total_mib=(24576, 24576))
    assert play.arrive("1", "new") == ["unload a"]


def test_a_consumer_over_two_gpus_takes_half_of_its_need_from_each() -> None:
    play = Playbook(
        resident("a", gpus=(0,)), resident("b", gpus=(1,)), absent("new", 40000, gpus=(0, 1)),
        total_mib=(24576, 24576),
    )  # fmt: skip
    assert play.arrive("1", "new") == ["unload a", "unload b"]
    assert play.facts(Evicted)[0] == Evicted("a", "new", 20000)
    assert play.leaves("a") == []
    assert play.leaves("b") == ["load new on 0, 1"]
    assert play.comes("new") == ["grant 1"]
    assert [gpu.holders.keys() for gpu in play.state.gpus.values()] == [{"new"}, {"new"}]


def test_consumers_on_different_gpus_load_and_compute_at_once() -> None:
    play = Playbook(absent("a", gpus=(0,)), absent("b", gpus=(1,)), total_mib=(24576, 24576))
    assert play.arrive("1", "a") == ["load a"]
    assert play.arrive("2", "b") == ["load b on 1"]
    assert play.comes("b") == ["grant 2"]
    assert play.comes("a") == ["grant 1"]


def test_a_gpu_that_does_not_answer_is_not_chosen() -> None:
    play = Playbook(absent("a"), total_mib=(24576, 12000))
    play.memory(24576, gpu=0, error="lost")
    assert play.arrive("1", "a") == ["load a on 1"]


def test_never_fits_names_the_gpus_that_were_asked_for() -> None:
    play = Playbook(absent("a", 20000, gpus=(1,)), total_mib=(24576, 12000))
    play.arrive("1", "a")
    refusal = play.ended["1"].refusal
    assert refusal is not None
    assert refusal.code == "never-fits"
    assert " on GPU 1; there is GPU 0: 24576 MiB, GPU 1: 12000 MiB" in refusal.detail


def test_nothing_is_said_against_a_gpu_that_has_never_been_read() -> None:
    play = Playbook(absent("a", 20000), blind=True)
    play.memory(0, error="lost")
    assert placement.never_fits(play.state, play["a"]) is None


# when_nothing_to_evict


def test_told_to_attempt_it_loads_where_most_is_free_and_evicts_nobody() -> None:
    play = Playbook(
        resident("p", 20000, pinned=True, gpus=(0,)),
        resident("q", 15000, pinned=True, gpus=(1,)),
        absent("new", 12000),
        total_mib=(24576, 24576),
        when_nothing_to_evict="attempt",
    )
    assert play.arrive("1", "new") == ["load new on 1"]
    assert play.loaded("new") == ["grant 1"]


def test_an_attempt_is_not_made_for_what_never_fits() -> None:
    play = Playbook(absent("new", 30000), when_nothing_to_evict="attempt")
    assert play.arrive("1", "new") == ["rejected 1: never-fits"]


def test_a_failed_attempt_is_repeated_after_everybody_permitted_has_left() -> None:
    play = Playbook(
        resident("p", 20000, pinned=True), resident("a", 2000), absent("new", 8000),
        when_nothing_to_evict="attempt",
    )  # fmt: skip
    play.arrive("1", "new")
    assert play.load_fails("new") == ["unload a"]
    assert play.leaves("a") == ["load new"]


def test_a_second_attempt_waits_for_a_gpu_that_answers() -> None:
    play = Playbook(
        resident("p", 20000, pinned=True), resident("a", 2000), absent("new", 8000),
        when_nothing_to_evict="attempt",
    )  # fmt: skip
    play.arrive("1", "new")
    play.load_fails("new")
    play.gpus_lost()
    assert play.unloaded("a") == []
    assert play.after(5.0) == []
    assert play.memory(4576) == ["load new"]


def test_what_only_the_targets_own_residual_prevents_is_refused_at_once() -> None:
    play = Playbook(absent("c", 6000, residual_mib=3000), total_mib=10000)
    play.memory(5000)
    assert play.arrive("1", "c") == ["rejected 1: vram-unavailable"]


@pytest.mark.parametrize("wanted", ["a", "b"])
def test_the_memory_of_one_that_died_is_waited_for(wanted: str) -> None:
    play = Playbook(resident("a", 6000), absent("b", 6000), total_mib=10000)
    play.memory(4000)
    play.probe("a", reachable=False)
    assert play.arrive("1", wanted) == []
    play.after(1.0)
    assert play.memory(10000) == [f"load {wanted}"]


def test_the_memory_of_one_that_died_in_quarantine_is_waited_for() -> None:
    play = Playbook(resident("a", 6000), absent("b", 6000), total_mib=10000)
    play.memory(4000)
    play.unload_by_hand("a")
    play.unloaded("a", error="no")
    play.probe("a", reachable=False)
    assert play.arrive("1", "b") == []
    assert play.memory(10000) == ["load b"]


def test_it_is_waited_for_no_longer_than_memory_may_take_to_settle() -> None:
    play = Playbook(resident("a", 6000), absent("b", 6000), total_mib=10000, settle_timeout_s=3.0)
    play.memory(4000)
    play.probe("a", reachable=False)
    play.arrive("1", "b")
    for _ in range(2):
        assert play.after(1.0) + play.memory(4000) == []
    assert play.after(1.0) + play.memory(4000) == ["rejected 1: vram-unavailable"]


def test_what_shows_as_free_already_is_not_waited_for() -> None:
    play = Playbook(resident("a", 6000), absent("b", 6000), total_mib=10000)
    play.memory(4000)
    play.memory(6000)
    play.probe("a", reachable=False)
    assert play.state.gpus[0].owed_mib == 4000
