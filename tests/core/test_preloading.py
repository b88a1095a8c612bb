"""Pinned consumers are kept in memory."""

from __future__ import annotations

from tests.core.playbook import Playbook, absent, resident, unknown


def test_a_pinned_consumer_is_loaded_at_the_start() -> None:
    play = Playbook(absent("a", pinned=True), absent("b"))
    assert play.states() == {"a": "loading", "b": "absent"}
    play.comes("a")
    assert play.states() == {"a": "resident", "b": "absent"}
    assert not play.state.jobs


def test_it_makes_room_and_waits_like_anybody_else() -> None:
    play = Playbook(resident("a"), absent("b"), total_mib=8000)
    play.arrive("1", "a")
    assert play.pin("b") == []
    assert play.end("1") == ["done 1", "unload a"]
    assert play.leaves("a") == ["load b"]


def test_nobody_is_loaded_before_it_is_known_to_be_absent() -> None:
    play = Playbook(unknown("a", pinned=True))
    assert play.states() == {"a": "unknown"}
    assert play.probe("a", resident=False) == ["load a"]


def test_one_that_is_lost_is_loaded_again() -> None:
    play = Playbook(resident("a", pinned=True))
    play.memory(24576)
    assert play.probe("a", reachable=False) == ["load a"]


def test_one_that_is_lost_again_and_again_is_tried_less_and_less_often() -> None:
    play = Playbook(absent("a", pinned=True))
    play.comes("a")
    play.memory(24576)
    assert play.probe("a", reachable=False) == []
    assert play.after(1.0) == ["load a"]
    play.comes("a")
    play.memory(24576)
    assert play.probe("a", reachable=False) == []
    assert play.after(1.0) == []
    assert play.after(1.0) == ["load a"]


def test_one_that_stayed_for_a_minute_starts_anew() -> None:
    play = Playbook(absent("a", pinned=True))
    play.comes("a")
    play.memory(24576)
    play.probe("a", reachable=False)
    play.after(1.0)
    play.comes("a")
    play.after(60.0)
    play.memory(16576)
    assert play["a"].preload_tries == 0
    play.memory(24576)
    assert play.probe("a", reachable=False) == ["load a"]


def test_a_load_that_fails_is_tried_again_with_a_growing_pause() -> None:
    play = Playbook(absent("a", pinned=True))
    play.load_fails("a")
    assert play.load_fails("a") == ["failed preload-a-0: load-failed"]
    assert play.after(1.0) == ["load a"]
    play.load_fails("a")
    play.load_fails("a")
    assert play.after(1.9) == []
    assert play.after(0.2) == ["load a"]


def test_no_room_is_asked_for_again_with_a_growing_pause() -> None:
    play = Playbook(absent("a", pinned=True), total_mib=10000, free_mib=2000)
    assert play.effects[-1]
    assert play.states() == {"a": "absent"}
    assert [job.partition("-")[0] for job in play.ended] == ["preload"]
    assert play.after(0.9) == []
    assert play.after(0.1) == ["rejected preload-a-1: vram-unavailable"]
    assert play.after(1.9) == []
    assert play.after(0.1) == ["rejected preload-a-2: vram-unavailable"]
    play.memory(10000)
    assert play.after(4.0) == ["load a"]


def test_one_without_a_way_to_be_loaded_waits_for_its_first_job() -> None:
    play = Playbook(absent("a", pinned=True, can_load=False))
    assert play.states() == {"a": "absent"}
    assert not play.ended


def test_one_that_a_person_unloaded_stays_out_until_something_loads_it() -> None:
    play = Playbook(resident("a", pinned=True))
    play.unload_by_hand("a")
    assert play.leaves("a") == ["answer r"]
    assert play.after(1000.0) == []
    assert play.arrive("1", "a") == ["load a"]
    assert play.comes("a") == ["grant 1"]
    play.end("1")
    play.memory(24576)
    assert play.probe("a", reachable=False) == ["load a"]


class TestPinningByHand:
    def test_loads_and_protects(self) -> None:
        play = Playbook(absent("a"), absent("b"), total_mib=8000)
        assert play.pin("a") == ["load a"]
        play.comes("a")
        assert play.arrive("1", "b") == ["rejected 1: vram-unavailable"]
        assert play.snapshot().consumers["a"].pinned

    def test_ends_with_an_unpin(self) -> None:
        play = Playbook(resident("a", pinned=True), absent("b"), total_mib=8000)
        assert play.pin("a", pinned=False) == []
        assert play.arrive("1", "b") == ["unload a"]

    def test_that_ends_while_it_waits_for_room_asks_for_none(self) -> None:
        play = Playbook(resident("a"), absent("b"), total_mib=8000)
        play.arrive("1", "a")
        play.pin("b")
        assert play.pin("b", pinned=False) == ["cancelled preload-b-1: client-left"]
        assert play.end("1") == ["done 1"]
        assert not play.timers

    def test_of_one_that_is_on_its_way_out_does_not_call_it_back(self) -> None:
        play = Playbook(resident("a"), absent("b"), total_mib=16000, free_mib=2000)
        play.arrive("1", "b")
        assert play.states()["a"] == "unloading"
        assert play.pin("a") == []
        assert play.states()["a"] == "unloading"


def test_nobody_is_loaded_while_the_broker_shuts_down() -> None:
    play = Playbook(resident("a", pinned=True))
    play.drain()
    play.memory(24576)
    assert play.probe("a", reachable=False) == []
