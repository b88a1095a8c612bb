from __future__ import annotations

from tests.core.playbook import Playbook, absent, resident


def overlapping(*consumers: object, **policy: object) -> Playbook:
    return Playbook(*consumers, prefetch=True, **policy)  # type: ignore[arg-type]


def test_while_one_computes_another_loads() -> None:
    play = overlapping(resident("a"), absent("b"))
    play.arrive("1", "a")
    assert play.arrive("2", "b") == ["load b"]
    assert play.comes("b") == []
    assert play.end("1") == ["done 1", "grant 2"]


def test_room_is_made_while_another_computes() -> None:
    play = overlapping(resident("a"), resident("idle"), absent("b"), total_mib=16000)
    play.arrive("1", "a")
    assert play.arrive("2", "b") == ["unload idle"]
    assert play.leaves("idle") == ["load b"]


def test_who_computes_is_no_victim() -> None:
    play = overlapping(resident("a"), absent("b"), total_mib=8000)
    play.arrive("1", "a")
    assert play.arrive("2", "b") == []
    assert play.end("1") == ["done 1", "unload a"]


def test_who_has_jobs_waiting_is_no_victim() -> None:
    play = overlapping(resident("a"), resident("b"), absent("c"), total_mib=16000)
    play.arrive("1", "a")
    play.arrive("2", "b")
    assert play.arrive("3", "c") == []
    assert play.end("1") == ["done 1", "grant 2", "unload a"]


def test_an_overdue_job_takes_the_place_of_who_has_jobs_waiting() -> None:
    play = overlapping(resident("a"), absent("c"), total_mib=8000, max_overtake_s=10)
    play.arrive("1", "a")
    play.arrive("2", "c")
    play.after(11)
    play.arrive("3", "a")
    assert play.end("1") == ["done 1", "unload a"]


def test_a_higher_priority_takes_the_place_of_a_lower_one_that_waits() -> None:
    play = overlapping(resident("a"), resident("b"), absent("c"), total_mib=16000)
    play.arrive("1", "a")
    play.arrive("2", "b")
    assert play.arrive("3", "c", priority=1) == ["unload b"]


def test_no_more_consumers_load_at_once_than_may_share_the_bus() -> None:
    play = overlapping(absent("a", 1000), absent("b", 1000), absent("c", 1000))
    assert play.arrive("1", "a") == ["load a"]
    assert play.arrive("2", "b") == ["load b"]
    assert play.arrive("3", "c") == []
    assert play.comes("a") == ["grant 1", "load c"]


def test_loads_side_by_side_keep_their_room_from_each_other() -> None:
    play = overlapping(absent("a"), absent("b"), resident("old", 4000), total_mib=16000)
    assert play.arrive("1", "a") == ["load a"]
    assert play.arrive("2", "b") == ["unload old"]
    assert play.leaves("old") == ["load b"]


def test_swaps_side_by_side_take_different_victims() -> None:
    play = overlapping(resident("a"), resident("b"), absent("c"), absent("d"), total_mib=16000)
    assert play.arrive("1", "c") == ["unload a"]
    assert play.arrive("2", "d") == ["unload b"]


def test_a_load_under_way_is_not_taken_for_twice_the_memory() -> None:
    """It is in its reservation and, as it proceeds, in the measured figure."""
    play = overlapping(absent("a", 16000), absent("b", 12000))
    play.arrive("1", "a")
    play.memory(8576)
    assert play.arrive("2", "b") == []


def test_without_prefetch_others_compute_beside_a_load_that_has_begun() -> None:
    play = Playbook(resident("a", 4000), absent("b", 4000), absent("c", 4000), prefetch=False)
    assert play.arrive("1", "b") == ["load b"]
    assert play.arrive("2", "a") == ["grant 2"]
    assert play.arrive("3", "c") == []
    assert play.comes("b") == []
    assert play.end("2") == ["done 2", "grant 1"]
    assert play.end("1") == ["done 1", "load c"]


def test_without_prefetch_a_shared_lock_is_in_no_loads_way_and_neither_is_another_gpu() -> None:
    play = Playbook(resident("a", 4000), absent("b", 4000), prefetch=False, lock="shared")
    play.arrive("1", "a")
    assert play.arrive("2", "b") == ["load b"]
    play = Playbook(
        resident("a", gpus=(0,)), absent("b", gpus=(1,)), total_mib=(8000, 8000), prefetch=False
    )
    play.arrive("1", "a")
    assert play.arrive("2", "b") == ["load b on 1"]


def test_without_prefetch_nothing_loads_while_somebody_computes() -> None:
    play = Playbook(resident("a"), absent("b"), prefetch=False)
    play.arrive("1", "a")
    assert play.arrive("2", "b") == []
    assert play.end("1") == ["done 1", "load b"]


def test_who_is_held_up_by_an_overdue_job_loads_all_the_same() -> None:
    """It must not compute before the overdue one; that its weights come meanwhile harms nobody."""
    play = overlapping(absent("slow"), absent("late"), max_overtake_s=10, order="resident-first")
    assert play.arrive("1", "slow") == ["load slow"]
    play.after(11)
    assert play.arrive("2", "late") == ["load late"]
    assert play.comes("late") == []
    assert play.comes("slow") == ["grant 1"]
    assert play.end("1") == ["done 1", "grant 2"]


def test_nobody_loads_before_an_overdue_job_has_its_room() -> None:
    play = overlapping(resident("a"), absent("b"), absent("c", 1000), total_mib=9000)
    play.arrive("1", "a")
    play.arrive("2", "b")
    play.after(130)
    assert play.arrive("3", "c") == []
    assert play.end("1") == ["done 1", "unload a"]


def test_a_smaller_one_loads_although_there_is_no_room_for_a_larger_one_before_it() -> None:
    play = overlapping(resident("a"), absent("large", 9000), absent("small", 2000), total_mib=12000)
    play.arrive("1", "a")
    assert play.arrive("2", "large") == []
    assert play.arrive("3", "small") == ["load small"]


def test_one_that_spares_somebody_says_nothing_about_one_that_does_not() -> None:
    choosy = absent("choosy", 4000, can_coexist_with=frozenset({"idle"}))
    play = overlapping(resident("a"), resident("idle", 4000), choosy, absent("b", 4000))
    play.state.gpus[0].total_mib = 12000
    play.gpus[0] = play.gpus[0].__class__(index=0, total_mib=12000, free_mib=0)
    play.arrive("1", "a")
    assert play.arrive("2", "choosy") == []
    assert play.arrive("3", "b") == ["unload idle"]
