from __future__ import annotations

from typing import Any

import pytest

from mgpu.core.effects import Measured
from mgpu.core.model import GpuProcess
from tests.core.playbook import Playbook, absent, resident


def lazy(name: str = "comfyui") -> Any:
    return absent(name, 0, learns=True, can_load=False)


def served(play: Playbook, free_mib: int) -> list[str]:
    """The first job is done, and a moment later the GPU has been read."""
    play.memory(free_mib)
    ended = play.end("1")
    play.after(0.01)
    return ended + play.memory(free_mib)


class TestOneThatItsFirstJobLoads:
    @pytest.fixture
    def play(self) -> Playbook:
        play = Playbook(lazy(), absent("llm", 9000), prefetch=True)
        assert play.arrive("1", "comfyui") == ["grant 1"]
        return play

    def test_may_take_all_there_is_while_that_job_computes(self, play: Playbook) -> None:
        assert play.arrive("2", "llm") == []
        assert served(play, 12576) == ["done 1", "load llm"]

    def test_is_measured_when_that_job_is_done(self, play: Playbook) -> None:
        served(play, 12576)
        assert Measured("comfyui", (0,), 12000, 0) in play.effects
        assert play["comfyui"].footprint_mib == 12000

    def test_leaves_for_others_from_then_on(self) -> None:
        play = Playbook(lazy(), absent("llm", 20000))
        play.arrive("1", "comfyui")
        served(play, 12576)
        assert play.arrive("2", "llm") == ["unload comfyui"]

    def test_is_not_measured_while_another_one_leaves(self) -> None:
        play = Playbook(lazy(), resident("a", 4000))
        play.unload_by_hand("a")
        assert play.arrive("1", "comfyui") == ["grant 1"]
        play.unloaded("a")
        served(play, 16576)
        assert play["comfyui"].needs_unknown

    def test_is_still_unknown_when_that_job_took_nothing(self, play: Playbook) -> None:
        served(play, 24576)
        assert play["comfyui"].needs_unknown
        assert play["comfyui"].footprint_mib == 0


class TestOneThatComes:
    def test_waits_for_the_loads_of_others(self) -> None:
        play = Playbook(absent("a"), absent("x", 0, learns=True), prefetch=True)
        play.arrive("1", "a")
        assert play.arrive("2", "x") == []
        assert play.comes("a") == ["load x", "grant 1"]

    def test_lets_nobody_load_into_what_comes_free_meanwhile(self) -> None:
        play = Playbook(
            resident("a"), absent("x", 0, learns=True), absent("b", 4000), prefetch=True
        )
        play.unload_by_hand("a")
        assert play.arrive("1", "x") == ["load x"]
        play.leaves("a")
        assert play.arrive("2", "b") == []
        play.memory(14576)
        assert play.loaded("x") == ["grant 1"]
        assert play.end("1") == ["done 1", "load b"]

    def test_is_not_measured_by_the_load_beside_which_another_one_left(self) -> None:
        play = Playbook(resident("a"), absent("x", 0, learns=True))
        play.unload_by_hand("a")
        play.arrive("1", "x")
        play.leaves("a")
        play.memory(14576)
        play.loaded("x")
        assert play["x"].needs_unknown
        play.end("1")
        play.after(play.state.policy.settle_timeout_s)
        play.memory(14576)
        assert play["x"].footprint_mib == 10000

    def test_does_not_wait_for_jobs_that_load_nothing(self) -> None:
        play = Playbook(resident("a"), absent("x", 0, learns=True), prefetch=True)
        play.arrive("1", "a")
        assert play.arrive("2", "x") == ["load x"]

    def test_does_not_begin_where_too_many_would_be_there(self) -> None:
        play = Playbook(
            resident("a", pinned=True), absent("x", 0, learns=True), max_resident=1, prefetch=True
        )
        assert play.arrive("1", "x") == ["rejected 1: vram-unavailable"]


class TestOneThatWasFound:
    def test_is_billed_what_nobody_explains(self) -> None:
        play = Playbook(resident("x", 0, learns=True), resident("a", 4000), free_mib=24576 - 15000)
        play.memory(24576 - 15000)
        assert play["x"].footprint_mib == 11000
        assert play.snapshot().gpus[0].foreign_mib == 0

    def test_makes_room_for_others(self) -> None:
        play = Playbook(resident("x", 0, learns=True), absent("a", 16000), free_mib=9576)
        assert play.arrive("1", "a") == ["unload x"]
        assert play.unloaded("x") == []
        assert play.memory(24576) == ["load a"]

    def test_is_not_billed_what_processes_of_nobody_are_seen_to_hold(self) -> None:
        play = Playbook(resident("x", 0, learns=True))
        play.holds(unlisted_mib=9000, foreign=(GpuProcess(7, 3000, "game"),))
        assert play["x"].footprint_mib == 9000

    def test_shares_with_others_that_were(self) -> None:
        play = Playbook(
            resident("x", 0, learns=True),
            resident("y", 0, learns=True, gpus=(0, 1)),
            total_mib=(24576, 24576),
        )
        play.memory(14576)
        play.memory(23576, gpu=1)
        assert (play["x"].footprint_mib, play["y"].footprint_mib) == (5000, 2000)

    def test_is_billed_nothing_new_while_memory_moves(self) -> None:
        play = Playbook(resident("x", 0, learns=True), resident("a"), free_mib=12576)
        play.memory(12576)
        play.unload_by_hand("a")
        play.unloaded("a")
        play.memory(16576)
        assert play["x"].footprint_mib == 4000

    def test_is_believed_when_it_has_left(self) -> None:
        play = Playbook(resident("x", 0, learns=True), free_mib=14576)
        play.memory(14576)
        play.unload_by_hand("x")
        play.unloaded("x")
        play.memory(16576)
        assert play.after(play.state.policy.settle_timeout_s) == ["answer r"]
        assert play.states()["x"] == "absent"
        assert play["x"].footprint_mib == 0
        assert play.snapshot().gpus[0].foreign_mib == 8000

    def test_lets_nobody_load_beside_its_jobs_as_they_may_load_it(self) -> None:
        play = Playbook(resident("x", 0, learns=True), absent("a"), prefetch=True)
        play.arrive("1", "x")
        assert play.arrive("2", "a") == []
        assert play.end("1") == ["done 1", "load a"]
