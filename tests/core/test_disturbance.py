from __future__ import annotations

from tests.core.playbook import Playbook, absent, resident


def disturbed(play: Playbook, consumer: str) -> bool:
    unload = play[consumer].unload
    assert unload is not None
    return unload.disturbed


def test_an_unload_alone_is_not_disturbed() -> None:
    play = Playbook(resident("a"), resident("b"))
    play.unload_by_hand("a")
    play.arrive("1", "b")
    play.memory(10000)
    assert not disturbed(play, "a")


def test_unloads_do_not_disturb_each_other() -> None:
    play = Playbook(resident("a"), resident("b"))
    play.unload_by_hand("a")
    play.unload_by_hand("b")
    assert not disturbed(play, "a")
    assert not disturbed(play, "b")


def test_an_unload_disturbs_a_quarantine() -> None:
    play = Playbook(resident("a"), resident("b"))
    play.unload_by_hand("a")
    play.unload_fails("a")
    assert not disturbed(play, "a")
    play.unload_by_hand("b")
    assert disturbed(play, "a")
    assert not disturbed(play, "b")


def test_a_load_disturbs_an_unload_on_its_gpu_and_on_no_other() -> None:
    play = Playbook(
        resident("a", gpus=(0,)),
        resident("b", gpus=(1,)),
        absent("c", gpus=(1,)),
        total_mib=(24576, 24576),
    )
    play.unload_by_hand("a")
    play.unload_by_hand("b")
    play.arrive("1", "c")
    assert not disturbed(play, "a")
    assert disturbed(play, "b")


def test_who_begins_to_unload_beside_a_disturbed_one_is_disturbed_too() -> None:
    play = Playbook(resident("a"), resident("b"), absent("c"))
    play.unload_by_hand("a")
    play.arrive("1", "c")
    play.comes("c")
    play.unload_by_hand("b")
    assert disturbed(play, "a")
    assert disturbed(play, "b")


def test_the_job_that_loads_a_lazy_consumer_disturbs() -> None:
    play = Playbook(resident("a"), absent("image", can_load=False))
    play.arrive("1", "image")
    play.unload_by_hand("a")
    assert disturbed(play, "a")


def test_its_later_jobs_do_not() -> None:
    play = Playbook(resident("a"), absent("image", can_load=False))
    play.arrive("1", "image")
    play.end("1")
    play.arrive("2", "image")
    play.unload_by_hand("a")
    assert not disturbed(play, "a")


def test_one_that_appears_beside_an_unload_disturbs_it() -> None:
    play = Playbook(resident("a"), absent("b"), absent("c"))
    play.unload_by_hand("a")
    play.probe("b", resident=True)
    assert disturbed(play, "a")
