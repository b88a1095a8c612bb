"""``restore_when_idle``: while nobody waits, those come back who are worth it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mgpu.core.events import PolicyChanged
from tests.core.playbook import Playbook, absent, resident


def restoring(*consumers: object, total_mib: int = 12000, **policy: Any) -> Playbook:
    rules = {"order": "planned", "prefetch": True, "restore_when_idle": True} | policy
    return Playbook(*consumers, total_mib=total_mib, **rules)  # type: ignore[arg-type]


def often(play: Playbook, consumer: str, times: int = 5) -> None:
    for _ in range(times):
        play.use(consumer)


def driven_out(*others: object, **policy: Any) -> Playbook:
    """``chat`` is asked for often; ``image`` once, and needs the whole GPU for it."""
    play = restoring(resident("chat", 8000), absent("image", 12000), *others, **policy)
    often(play, "chat")
    play.arrive("big", "image")
    play.leaves("chat")
    assert play.comes("image") == ["grant big"]
    return play


def test_who_is_asked_for_most_comes_back_when_nobody_waits() -> None:
    play = driven_out()
    assert play.end("big") == ["done big", "unload image"]
    assert play.leaves("image") == ["load chat"]
    play.comes("chat")
    assert play.states() == {"chat": "resident", "image": "absent"}
    assert not play.state.jobs


def test_nobody_comes_back_unless_so_configured() -> None:
    play = driven_out(restore_when_idle=False)
    assert play.end("big") == ["done big"]


def test_nobody_comes_back_while_somebody_waits() -> None:
    play = driven_out()
    play.arrive("more", "image")
    assert play.end("big") == ["done big", "grant more"]
    assert play.end("more") == ["done more", "unload image"]


def test_one_that_is_asked_for_no_more_than_who_is_there_does_not_come_back() -> None:
    play = restoring(resident("chat", 8000), absent("image", 8000))
    often(play, "chat", 2)
    play.arrive("1", "image")
    play.leaves("chat")
    play.after(4.0)
    play.comes("image")
    assert play.end("1") == ["done 1"]


def test_arrivals_of_long_ago_bring_nobody_back() -> None:
    play = driven_out()
    play.after(500.0)
    play.arrive("next", "image")
    play.after(90.0)
    play.end("big")
    play.after(1000.0)
    assert play.end("next") == ["done next"]


def test_the_best_set_is_not_always_the_best_ones() -> None:
    """The largest is asked for most, and worth less than the two that fit in its place."""
    play = restoring(
        resident("a", 6000), resident("b", 6000), absent("large", 12000), absent("all", 12000)
    )
    often(play, "a", 4)
    often(play, "b", 4)
    play.arrive("0", "all")
    play.leaves("a")
    play.leaves("b")
    play.comes("all")
    play.after(1.0)
    assert play.end("0") == ["done 0", "unload all"]
    assert play.leaves("all") == ["load b"]
    assert play.comes("b")[-1] == "load a"
    play.comes("a")
    assert play.states() == {"a": "resident", "b": "resident", "large": "absent", "all": "absent"}


def test_who_is_of_the_set_does_not_leave_for_another_of_it() -> None:
    """By itself, least recently used would have had ``voice`` leave."""
    play = restoring(
        resident("chat", 6000),
        resident("voice", 4000),
        absent("image", 6000),
        order="resident-first",
    )
    often(play, "chat", 5)
    often(play, "voice", 9)
    play.arrive("1", "image")
    play.leaves("chat")
    play.comes("image")
    play.after(1.0)
    assert play.end("1") == ["done 1", "unload image"]
    assert play.leaves("image") == ["load chat"]


def test_a_job_that_comes_before_the_load_has_the_room() -> None:
    play = driven_out()
    play.end("big")
    assert play.arrive("now", "image") == [
        f"cancelled {play.state.restore_job}: client-left",
    ]
    assert play.leaves("image") == ["load image"]
    assert play.comes("image") == ["grant now"]
    assert play.end("now") == ["done now", "unload image"]


def test_a_job_that_comes_during_the_load_evicts_who_was_brought_back_at_once() -> None:
    play = driven_out(min_resident_s=60.0)
    play.after(60.0)
    play.end("big")
    assert play.leaves("image") == ["load chat"]
    play.arrive("now", "image")
    assert play.comes("chat") == ["unload chat"]


def test_one_that_a_job_has_used_since_is_as_safe_as_any_other() -> None:
    play = driven_out(min_resident_s=60.0)
    play.after(60.0)
    play.end("big")
    play.leaves("image")
    play.arrive("mine", "chat")
    assert play.comes("chat") == ["grant mine"]
    play.arrive("now", "image")
    assert play.end("mine") == ["done mine"]


def test_a_load_for_nobody_does_not_count_as_one_of_the_loads_at_once() -> None:
    play = driven_out(absent("small", 1000), total_mib=13000, max_parallel_loads=1)
    play.end("big")
    assert play.leaves("image") == ["load chat"]
    assert play.arrive("now", "small") == [
        f"cancelled {play.state.restore_job}: client-left",
        "load small",
    ]


def test_without_prefetch_no_job_waits_for_a_load_that_nobody_waits_for() -> None:
    play = driven_out(absent("tts", 2000), prefetch=False)
    play.end("big")
    assert play.leaves("image") == ["load chat"]
    given_up = f"cancelled {play.state.restore_job}: client-left"
    assert play.arrive("1", "tts") == [given_up, "load tts"]


def test_one_that_fails_to_come_back_is_left_alone_for_a_while() -> None:
    play = driven_out()
    play.end("big")
    assert play.leaves("image") == ["load chat"]
    assert play.load_fails("chat") == ["load chat"]
    play.load_fails("chat")
    assert play.state.jobs == {}
    assert play.after(30.0) == []
    play.after(31.0)
    assert play.memory(12000) == ["load chat"]


def test_nobody_comes_back_beside_computing_without_prefetch() -> None:
    play = restoring(
        resident("chat", 8000), absent("image", 12000), resident("s", 10), prefetch=False
    )
    often(play, "chat")
    play.state.consumers["s"].pinned = True
    play.gpus[0] = play.gpus[0].__class__(index=0, total_mib=12010, free_mib=4000)
    play.arrive("big", "image")
    play.leaves("chat")
    play.comes("image")
    play.arrive("s", "s")
    play.end("big")
    assert play.end("s") == ["done s", "unload image"]


@pytest.mark.parametrize(
    "why",
    [
        {"pinned": True},
        {"can_unload": False},
    ],
)
def test_nobody_leaves_for_it_who_may_not(why: dict[str, bool]) -> None:
    play = restoring(resident("chat", 8000), resident("image", 4000, **why))
    often(play, "chat")
    play.unload_by_hand("chat")
    play.leaves("chat")
    play["chat"].unloaded_by_hand = False
    play.gpus[0] = play.gpus[0].__class__(index=0, total_mib=8000, free_mib=4000)
    assert play.memory(4000) == []


@pytest.mark.parametrize("why", [{"can_load": False}, {"idle_unload_s": 3600.0}])
def test_some_are_never_brought_back(why: dict[str, object]) -> None:
    play = restoring(resident("chat", 8000, **why), absent("image", 12000))
    often(play, "chat")
    play.arrive("big", "image")
    play.leaves("chat")
    play.comes("image")
    assert play.end("big") == ["done big"]


def test_whom_a_person_unloaded_stays_away() -> None:
    play = restoring(resident("chat", 8000))
    often(play, "chat")
    play.unload_by_hand("chat")
    assert play.leaves("chat") == ["answer r"]
    assert play.memory(12000) == []


def test_one_that_was_taken_out_of_the_configuration_stays_away() -> None:
    play = driven_out(restore_when_idle=False)
    play.end("big")
    rules = replace(
        play.state.policy,
        consumers={"image": play["image"].policy},
        restore_when_idle=True,
    )
    assert play.handle(PolicyChanged(play.now, rules)) == []
    assert play.states() == {"image": "resident"}


def test_one_that_lives_on_several_gpus_is_left_out() -> None:
    play = restoring(
        resident("both", 8000, gpus=(0, 1)),
        absent("image", 12000, gpus=(0,)),
        total_mib=(12000, 12000),  # type: ignore[arg-type]
    )
    often(play, "both")
    play.arrive("big", "image")
    play.leaves("both")
    play.comes("image")
    assert play.end("big") == ["done big"]


def test_with_a_limit_of_residents_the_most_valuable_stay() -> None:
    play = restoring(
        resident("chat", 4000), absent("other", 4000), resident("far", 10), max_resident=2
    )
    often(play, "chat")
    play.state.consumers["far"].pinned = True
    play.arrive("1", "other")
    play.leaves("chat")
    play.comes("other")
    assert play.end("1") == ["done 1", "unload other"]


def test_nobody_comes_back_while_the_broker_is_paused() -> None:
    play = driven_out()
    play.pause()
    assert play.end("big") == ["done big", "unload image"]
    assert play.leaves("image") == ["answer p"]
    assert play.resume() == ["load chat"]


def test_of_very_many_those_come_back_that_are_worth_most_for_their_size() -> None:
    names = [f"c{n:02}" for n in range(14)]
    play = restoring(*(resident(name, 800) for name in names), absent("image", 12000))
    for number, name in enumerate(names):
        often(play, name, 1 + number // 13 * 5)
    play.arrive("big", "image")
    for name in names:
        play.leaves(name)
    play.comes("image")
    play.end("big")
    assert play.leaves("image") == ["load c13"]


def test_one_for_which_no_room_can_be_made_is_given_up_at_once() -> None:
    """It is the least to be wanted, and may not leave before its time."""
    play = driven_out(min_resident_s=60.0)
    play.end("big")
    assert play.ended["big"]
    assert play.state.restore_job
    assert play.state.jobs == {}
    assert play.states() == {"chat": "absent", "image": "resident"}
