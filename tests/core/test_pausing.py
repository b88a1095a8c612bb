"""The person at the keyboard wants the GPU."""

from __future__ import annotations

from tests.core.playbook import Playbook, absent, resident, unknown


def test_everybody_leaves_pinned_or_not_and_then_the_person_is_told() -> None:
    play = Playbook(resident("a"), resident("b", pinned=True), absent("c"))
    assert play.pause() == ["unload a", "unload b"]
    assert play.unloaded("a") == []
    assert play.unloaded("b") == []
    assert play.memory(24576) == ["answer p"]
    assert play.snapshot().paused


def test_running_jobs_end_first_and_nobody_is_granted_after_them() -> None:
    play = Playbook(resident("a"))
    play.arrive("1", "a")
    play.arrive("2", "a")
    assert play.pause() == []
    assert play.end("1") == ["done 1", "unload a"]
    assert play.leaves("a") == ["answer p"]
    assert play.state.jobs.keys() == {"2"}


def test_what_they_give_back_is_judged_by_figures_of_the_moment() -> None:
    play = Playbook(resident("a"), stale=True)
    play.after(1.0)
    assert play.pause() == []
    assert play.memory(16576) == ["unload a"]


def test_new_jobs_are_refused_and_told_when_to_come_back() -> None:
    play = Playbook(resident("a"))
    play.pause()
    assert play.arrive("1", "a") == ["rejected 1: paused"]
    assert play.load("2", "a") == ["rejected 2: paused"]
    refusal = play.ended["1"].refusal
    assert refusal is not None
    assert refusal.retry_after_s == 30.0


def test_who_waits_does_so_until_the_deadline() -> None:
    play = Playbook(resident("a"), absent("b"), max_wait_s=20.0)
    play.arrive("1", "a")
    play.arrive("2", "b")
    play.pause()
    play.end("1")
    play.leaves("a")
    assert play.after(20.0) == ["expired 2: wait-expired"]


def test_it_goes_on_where_it_stopped() -> None:
    play = Playbook(resident("a"), max_wait_s=600.0)
    play.arrive("1", "a")
    play.arrive("2", "a")
    play.pause()
    play.end("1")
    play.leaves("a")
    assert play.resume() == ["load a"]
    assert play.comes("a") == ["grant 2"]
    assert not play.snapshot().paused


def test_resuming_early_answers_who_waits_for_the_pause_and_keeps_who_is_busy() -> None:
    play = Playbook(resident("a"))
    play.arrive("1", "a")
    play.pause()
    assert play.resume() == ["answer p"]
    assert play.end("1") == ["done 1"]
    assert play.states() == {"a": "resident"}


def test_room_is_not_made_any_more() -> None:
    play = Playbook(resident("a"), absent("b"), total_mib=8000)
    play.arrive("1", "b")
    assert play.pause() == []
    assert play.leaves("a") == ["answer p"]
    assert play.states() == {"a": "absent", "b": "absent"}
    assert play.resume() == ["load b"]


def test_a_load_under_way_is_waited_for() -> None:
    play = Playbook(absent("a"))
    play.arrive("1", "a")
    assert play.pause() == []
    assert play.comes("a") == ["unload a"]
    assert play.leaves("a") == ["answer p"]


def test_a_load_that_fails_is_not_tried_again() -> None:
    play = Playbook(absent("a"))
    play.arrive("1", "a")
    play.pause()
    assert play.load_fails("a") == ["answer p"]
    assert play.resume() == ["load a"]
    assert play.load_fails("a") == ["load a"]


def test_pinned_ones_come_back_only_afterwards() -> None:
    play = Playbook(resident("a", pinned=True))
    play.pause()
    play.leaves("a")
    assert play.after(60.0) == []
    assert play.resume() == ["load a"]


def test_one_that_nobody_has_asked_yet_is_asked_first() -> None:
    play = Playbook(unknown("a"))
    assert play.pause() == []
    assert play.probe("a", resident=True) == ["unload a"]


def test_who_cannot_be_unloaded_stays_and_only_stops_computing() -> None:
    play = Playbook(resident("a", can_unload=False), resident("b", vram_managed=True))
    play.arrive("1", "a")
    assert play.pause() == []
    assert play.end("1") == ["done 1", "answer p"]
    assert play.states() == {"a": "resident", "b": "resident"}


def test_the_person_is_told_who_could_not_be_unloaded() -> None:
    play = Playbook(resident("a"))
    play.pause()
    assert play.unload_fails("a") == ["answer p: unload-failed"]
    assert play.snapshot().paused


def test_pausing_twice_answers_twice() -> None:
    play = Playbook(absent("a"))
    assert play.pause("p") == ["answer p"]
    assert play.pause("q") == ["answer q"]


def test_nobody_is_told_when_to_expect_anything() -> None:
    play = Playbook(resident("a"))
    play.use("a")
    play.arrive("1", "a")
    play.arrive("2", "a")
    assert play.snapshot().queue[0].eta_s is not None
    play.pause()
    assert play.snapshot().queue[0].eta_s is None
