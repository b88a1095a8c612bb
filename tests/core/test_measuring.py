from __future__ import annotations

import pytest

from mgpu.core.effects import FootprintLearned, FootprintWrong, Measured
from mgpu.core.model import GpuProcess
from tests.core.playbook import Playbook, absent, resident


class TestWhatAConsumerHolds:
    def test_its_footprint_is_raised_by_what_its_processes_hold(self) -> None:
        play = Playbook(resident("tts", 2000))
        play.holds(tts=3100)
        assert play["tts"].measured_mib == 3100
        assert play["tts"].footprint_mib == 3100
        play.holds(tts=2500)
        assert play["tts"].measured_mib == 3100

    def test_a_consumer_on_two_gpus_is_known_when_both_tell(self) -> None:
        play = Playbook(resident("llm", 8000, gpus=(0, 1)), total_mib=(24576, 24576))
        play.holds(llm=5000)
        assert play["llm"].measured_mib is None
        play.holds(1, llm=4000)
        assert play["llm"].measured_mib == 9000

    def test_one_that_manages_itself_is_not_judged(self) -> None:
        play = Playbook(resident("ollama", 2000, vram_managed=True))
        play.holds(ollama=3100)
        assert play["ollama"].measured_mib is None
        assert play.snapshot().consumers["ollama"].held_mib == 3100

    def test_a_load_is_measured_although_others_compute_and_foreign_memory_grows(self) -> None:
        play = Playbook(resident("a", 4000), absent("b", 4000), prefetch=True, lock="shared")
        play.holds(a=4000)
        play.arrive("1", "a")
        assert play.arrive("2", "b") == ["load b"]
        play.holds(a=5000, b=4600, foreign=(GpuProcess(7, 3000, "game"),))
        play.loaded("b")
        assert play["b"].measured_mib == 4600
        assert play.facts(FootprintLearned) == [FootprintLearned("b", 4600)]

    def test_where_none_of_it_is_seen_the_fall_of_free_memory_counts(self) -> None:
        play = Playbook(absent("a", 4000))
        play.holds(a=0)
        play.arrive("1", "a")
        play.holds(a=0, unlisted_mib=4400)
        play.loaded("a")
        assert play["a"].measured_mib == 4400

    def test_an_ill_gpu_tells_nothing(self) -> None:
        play = Playbook(resident("a", 4000))
        play.holds(a=4000)
        play.memory(1000, error="lost")
        assert play["a"].own_total_mib is None


class TestALoadOfWhichOnlyFreeMemoryTells:
    @pytest.fixture
    def play(self) -> Playbook:
        """Of a's load nothing has been read when it is over, after 1 s."""
        play = Playbook(absent("a", 0, learns=True), absent("b", 1000), prefetch=True)
        play.arrive("1", "a")
        play.sighted = False
        play.after(1.0)
        play.loaded("a")
        play.after(0.05)
        return play

    def test_what_it_took_is_taken_from_the_first_reading_after_it(self, play: Playbook) -> None:
        assert play["a"].measured_mib is None
        play.memory(20576)
        assert play["a"].measured_mib == 4000

    def test_a_reading_that_was_begun_before_its_end_tells_too_little(self, play: Playbook) -> None:
        play.memory(24276, asked_s_ago=0.1)
        assert play["a"].measured_mib is None
        play.memory(20576)
        assert play["a"].measured_mib == 4000

    def test_until_then_it_is_taken_to_need_all_there_was(self, play: Playbook) -> None:
        assert play.arrive("2", "b") == []
        assert play.memory(20576) == ["load b"]

    def test_nothing_is_learned_of_one_that_has_left_by_then(self, play: Playbook) -> None:
        play.end("1")
        play.probe("a", reachable=False)
        play.memory(20576)
        assert play["a"].measured_mib is None
        assert play["a"].footprint_mib == 0


class TestUnloads:
    def test_one_that_holds_its_weights_for_too_long_after_it_is_there_again(self) -> None:
        play = Playbook(resident("a", 11800), absent("b", 13000), total_mib=24576)
        play.holds(a=11100)
        play.arrive("1", "b")
        play.unloaded("a")
        play.after(play.state.policy.settle_timeout_s)
        play.holds(a=11100, b=2000)
        assert play.states()["a"] == "resident"

    def test_what_it_held_before_it_left_is_not_what_it_kept(self) -> None:
        play = Playbook(resident("a", 11800), absent("b", 13000), total_mib=24576)
        play.holds(a=11100)
        play.arrive("1", "b")
        assert play.unloaded("a") == ["load b"]
        assert play["a"].kept_seen_mib == 0
        play.after(0.5)
        play.holds(a=11100, b=2000)
        assert play.states()["a"] == "absent"
        assert play["a"].kept_seen_mib == 0
        play.holds(a=400, b=13000)
        assert play["a"].kept_seen_mib == 400

    def test_what_still_comes_back_is_nothing_that_it_kept(self) -> None:
        play = Playbook(resident("a"), absent("b", 12000), absent("c", 5000))
        play.holds(a=8000, unlisted_mib=5000)
        play.arrive("1", "b")
        assert play.unloaded("a") == []
        assert play.holds(a=3000, unlisted_mib=5000) == ["load b"]
        assert play["a"].kept_seen_mib == 0
        play.holds(a=0, b=12000, unlisted_mib=5000)
        play.after(play.state.policy.settle_timeout_s)
        play.holds(a=300, b=12000, unlisted_mib=5000)
        assert play["a"].kept_seen_mib == 300

    def test_most_of_its_memory_is_nothing_that_it_kept_when_it_is_there_after_all(self) -> None:
        play = Playbook(absent("a", tells_residency=True), absent("b", 20000))
        play.holds(a=8000)
        assert play["a"].kept_seen_mib == 8000
        play.probe("a", resident=True)
        assert play["a"].kept_seen_mib == 0
        assert play.arrive("1", "b") == ["unload a"]

    def test_one_is_over_when_its_own_processes_have_let_go(self) -> None:
        play = Playbook(resident("a"), resident("b"), total_mib=24576)
        play.holds(a=8000, b=8000)
        play.unload_by_hand("a")
        play.unloaded("a")
        assert play.holds(a=0, b=15000) == ["answer r"]
        assert play["a"].state == "absent"

    def test_one_beside_a_load_is_not_believed_by_its_word(self) -> None:
        play = Playbook(resident("a"), absent("b"), prefetch=True)
        play.holds(a=8000)
        play.unload_by_hand("a")
        play.arrive("1", "b")
        play.holds(a=8000, b=8000)
        play.unloaded("a")
        play.after(5.5)
        assert play["a"].state == "quarantined"

    def test_what_its_processes_keep_is_its_residual_from_then_on(self) -> None:
        play = Playbook(resident("a"))
        play.holds(a=8000)
        play.unload_by_hand("a")
        play.unloaded("a")
        assert play.holds(a=500) == ["answer r"]
        play.holds(a=400)
        assert play["a"].kept_seen_mib == 400
        play.arrive("1", "a")
        assert play.snapshot().gpus[0].foreign_mib == 0

    def test_what_is_kept_of_it_at_the_deadline_is_known_and_not_guessed(self) -> None:
        play = Playbook(resident("a"), absent("b", 20000))
        play.holds(a=8000)
        play.arrive("1", "b")
        play.unloaded("a")
        play.holds(a=3000, unlisted_mib=3000)
        play.after(6.0)
        assert (play["a"].leftover_mib, play["a"].kept_seen_mib) == (0, 3000)


class TestGuesses:
    def test_one_taken_for_absent_whose_processes_hold_its_weights_is_resident(self) -> None:
        play = Playbook(absent("a"))
        play.holds(a=7000)
        assert play["a"].state == "resident"

    def test_a_context_is_no_weights(self) -> None:
        play = Playbook(absent("a"))
        play.holds(a=500)
        assert play["a"].state == "absent"

    def test_who_tells_is_believed_more(self) -> None:
        play = Playbook(absent("a", tells_residency=True))
        play.holds(a=7000)
        assert play["a"].state == "absent"

    def test_what_an_unasked_one_is_seen_to_hold_is_believed_more_than_that_it_is_new(
        self,
    ) -> None:
        play = Playbook(resident("a"), resident("b", tells_residency=True))
        play.holds(a=7000, b=7000)
        play.probe("a", resident=False)
        play.probe("b", resident=False)
        assert play.states() == {"a": "resident", "b": "absent"}
        play.holds(a=500, b=7000)
        play.probe("a", resident=False)
        assert play.states() == {"a": "absent", "b": "absent"}

    def test_one_that_is_to_load_anyway_is_left_to(self) -> None:
        play = Playbook(absent("a"), resident("b", 20000))
        play.holds(b=20000, a=0)
        play.arrive("1", "a")
        play.holds(b=20000, a=4500)
        assert play["a"].state == "absent"
        assert "a" in play.state.swaps

    def test_one_whose_processes_let_go_by_themselves_is_absent(self) -> None:
        play = Playbook(resident("a"), resident("lazy", can_load=False))
        play.holds(a=8000, lazy=8000)
        play.holds(a=0, lazy=0)
        assert play.states() == {"a": "absent", "lazy": "resident"}


class TestForeign:
    def test_processes_of_nobody_are_named_the_largest_first(self) -> None:
        play = Playbook(resident("a", 8000))
        game, hidden = GpuProcess(7, 3000, "game"), GpuProcess(8, None)
        play.holds(a=6000, foreign=(hidden, game))
        gpu = play.snapshot().gpus[0]
        assert gpu.foreign == (game, hidden)
        assert gpu.foreign_mib == 3000


class TestWarnings:
    def test_a_footprint_that_is_too_small_is_told_once(self) -> None:
        play = Playbook(resident("tts", 2000))
        play.holds(tts=3100)
        assert play.facts(FootprintWrong) == [FootprintWrong("tts", 2000, 3100)]
        assert play.snapshot().warnings == (
            "tts: footprint_mib is 2000, measured were 3100 MiB; write footprint_mib: 3100",
        )
        play.holds(tts=3100)
        assert play.facts(FootprintWrong) == []
        play.holds(tts=4000)
        assert play.facts(FootprintWrong) == [FootprintWrong("tts", 2000, 4000)]

    def test_one_that_is_too_large_is_told_after_a_job(self) -> None:
        play = Playbook(resident("tts", 6000))
        play.holds(tts=3000)
        assert play.snapshot().warnings == ()
        play.use("tts")
        play.holds(tts=3000)
        assert play.facts(FootprintWrong) == [FootprintWrong("tts", 6000, 3000)]

    @pytest.mark.parametrize("seen_mib", [2750, 3300])
    def test_a_tenth_is_near_enough(self, seen_mib: int) -> None:
        play = Playbook(resident("tts", 3000))
        play.use("tts")
        play.holds(tts=seen_mib)
        assert play.snapshot().warnings == ()

    def test_a_fall_of_free_memory_does_not_hold_the_residual(self) -> None:
        play = Playbook(absent("tts", 3000, residual_mib=1000))
        play.arrive("1", "tts")
        play.comes("tts")
        play.end("1")
        assert play["tts"].measured_mib == 2000
        assert play.snapshot().warnings == ()


class TestLearned:
    def test_the_first_load_takes_all_that_is_to_be_had(self) -> None:
        play = Playbook(
            resident("a", 4000), resident("b", 4000), absent("x", 0, learns=True), cushion_mib=256
        )
        play.holds(a=4000, b=4000)
        assert play.snapshot().consumers["x"].footprint_source == "unknown"
        assert play.arrive("1", "x") == ["unload a", "unload b"]
        play.unloaded("a")
        play.holds(b=4000, a=0)
        assert play.states()["x"] == "absent"
        play.unloaded("b")
        assert play.holds(a=0, b=0) == ["load x"]
        assert play.snapshot().gpus[0].reserved_mib == 24576 - 256

    def test_then_what_was_measured_counts(self) -> None:
        play = Playbook(resident("a", 4000), absent("x", 0, learns=True))
        play.holds(a=4000)
        play.arrive("1", "x")
        play.unloaded("a")
        play.holds(a=0)
        play.holds(a=0, x=6000)
        play.loaded("x")
        assert Measured("x", (0,), 6000, 0) in play.effects
        view = play.snapshot().consumers["x"]
        assert (view.footprint_mib, view.footprint_source) == (6000, "measured")
        play.end("1")
        assert play.arrive("2", "a") == ["load a"]

    def test_without_figures_of_processes_a_first_load_is_measured_as_well_as_can_be(self) -> None:
        play = Playbook(
            resident("a", 4000), absent("x", 0, learns=True), prefetch=True, lock="shared"
        )
        play.arrive("1", "a")
        play.arrive("2", "x")
        play.memory(24576 - 4000 - 6000)
        play.loaded("x")
        assert play["x"].measured_mib == 6000

    def test_jobs_raise_it(self) -> None:
        play = Playbook(resident("x", 0, learns=True), learned_mib={"x": (6000, 0)})
        play.holds(x=6050)
        assert play.facts(Measured) == []
        play.holds(x=9000)
        assert play.facts(Measured) == [Measured("x", (0,), 9000, 0)]

    def test_another_load_does_not_lower_it(self) -> None:
        play = Playbook(absent("x", 0, learns=True), learned_mib={"x": (9000, 300)})
        play.holds(x=300)
        play.arrive("1", "x")
        play.holds(x=6000)
        play.loaded("x")
        assert play["x"].measured_mib == 9000

    def test_half_of_a_peak_that_was_not_reached_is_forgotten(self) -> None:
        play = Playbook(resident("x", 0, learns=True), learned_mib={"x": (9000, 300)})
        play.holds(x=6000)
        play.use("x")
        play.unload_by_hand("x")
        play.unloaded("x")
        play.holds(x=300)
        assert play["x"].measured_mib == 7500
        assert play.facts(Measured) == [Measured("x", (0,), 7500, 300)]

    def test_what_is_learned_of_one_that_is_configured_is_not_taken_from_before(self) -> None:
        play = Playbook(resident("x", 4000), learned_mib={"x": (9000, 300)})
        assert play["x"].measured_mib is None

    def test_it_outlasts_the_end_of_the_process(self) -> None:
        play = Playbook(resident("x", 0, learns=True), learned_mib={"x": (9000, 300)})
        play.probe("x", reachable=False)
        assert play["x"].measured_mib == 9000
