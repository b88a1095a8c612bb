"""What people have asked for holds over a restart: it is kept, and comes back."""

from __future__ import annotations

from dataclasses import replace

from mgpu.core.effects import Keep
from mgpu.core.events import PolicyChanged
from mgpu.core.model import ByHand, ConsumerPolicy
from tests.core.playbook import Playbook, absent, resident, unknown


def kept(play: Playbook) -> list[ByHand]:
    """What the last event had written down."""
    return [effect.by_hand for effect in play.facts(Keep)]


def change(play: Playbook, *consumers: ConsumerPolicy) -> list[ByHand]:
    """What is written down as these consumers and no others are configured."""
    policy = replace(play.state.policy, consumers={c.name: c for c in consumers})
    play.handle(PolicyChanged(play.now, policy))
    return kept(play)


class TestAPause:
    def test_is_kept_with_when_it_began_and_its_end_too(self) -> None:
        play = Playbook(resident("a"))
        play.after(7.0)
        play.pause()
        assert kept(play) == [ByHand(paused_at=7.0)]
        play.resume()
        assert kept(play) == [ByHand()]

    def test_is_kept_before_the_person_is_told(self) -> None:
        play = Playbook(absent("a"))
        assert play.pause("p") == ["answer p"]
        assert [type(e).__name__ for e in play.effects[-2:]] == ["Keep", "Answer"]

    def test_that_is_asked_for_again_is_the_same_one(self) -> None:
        play = Playbook(resident("a"))
        play.pause("p")
        play.after(7.0)
        play.pause("q")
        assert kept(play) == []
        assert play.snapshot().paused_s == 7.0
        play.resume()
        play.resume()
        assert kept(play) == []

    def test_holds_when_the_program_starts_again(self) -> None:
        play = Playbook(absent("a"), absent("b", pinned=True), kept=ByHand(paused_at=-100.0))
        play.after(50.0)
        assert play.states() == {"a": "absent", "b": "absent"}
        assert play.arrive("1", "a") == ["rejected 1: paused"]
        shown = play.snapshot()
        assert (shown.paused, shown.paused_s, shown.pause_kept) == (True, 150.0, True)
        assert play.resume() == ["load b"]
        assert kept(play) == [ByHand()]
        shown = play.snapshot()
        assert (shown.paused, shown.paused_s, shown.pause_kept) == (False, None, False)

    def test_lets_whoever_is_found_in_memory_leave(self) -> None:
        play = Playbook(unknown("a"), absent("b"), kept=ByHand(paused_at=0.0))
        assert play.probe("a", resident=True) == ["unload a"]
        assert play.pause() == []
        assert kept(play) == []
        assert play.leaves("a") == ["answer p"]

    def test_waits_for_the_first_figures_that_show_whether_they_leave(self) -> None:
        play = Playbook(unknown("a"), blind=True, kept=ByHand(paused_at=0.0))
        assert play.probe("a", resident=True) == []
        assert play.memory(16576) == ["unload a"]
        assert play.unloaded("a") == []
        play.memory(24576)
        assert play.states() == {"a": "absent"}

    def test_waits_for_no_figures_that_cannot_be_had(self) -> None:
        play = Playbook(unknown("a"), blind=True, kept=ByHand(paused_at=0.0))
        play.probe("a", resident=True)
        assert play.gpus_lost() == ["unload a"]

    def test_after_the_kept_one_is_a_new_one(self) -> None:
        play = Playbook(absent("a"), kept=ByHand(paused_at=-100.0))
        play.resume()
        play.pause()
        assert not play.snapshot().pause_kept


class TestAPin:
    def test_is_kept_where_it_differs_from_the_configuration(self) -> None:
        play = Playbook(resident("a"), resident("b", pinned=True))
        play.pin("a")
        assert kept(play) == [ByHand(pins={"a": True})]
        play.pin("b", pinned=False)
        assert kept(play) == [ByHand(pins={"a": True, "b": False})]
        play.pin("a", pinned=False)
        assert kept(play) == [ByHand(pins={"b": False})]
        play.pin("b")
        assert kept(play) == [ByHand()]

    def test_that_changes_nothing_is_not_written_down(self) -> None:
        play = Playbook(resident("a", pinned=True))
        play.pin("a")
        assert kept(play) == []

    def test_holds_when_the_program_starts_again(self) -> None:
        pins = {"a": True, "b": False}
        play = Playbook(absent("a"), absent("b", pinned=True), kept=ByHand(pins=pins))
        assert play.states() == {"a": "loading", "b": "absent"}
        assert [c.pinned for c in play.snapshot().consumers.values()] == [True, False]
        play.pause()
        assert kept(play) == [ByHand(0.0, pins)]

    def test_is_the_configurations_once_that_says_the_same(self) -> None:
        play = Playbook(resident("a"))
        play.pin("a")
        assert change(play, resident("a", priority=1)) == []
        assert change(play, resident("a", pinned=True)) == [ByHand()]
        assert change(play, resident("a")) == []
        assert not play["a"].pinned

    def test_is_forgotten_with_its_consumer_even_if_that_comes_back_in_time(self) -> None:
        play = Playbook(resident("a"), resident("b"))
        play.arrive("1", "a")
        play.pin("a")
        assert change(play, resident("b")) == [ByHand()]
        assert change(play, resident("a"), resident("b")) == []
        assert not play["a"].pinned

    def test_of_the_configuration_is_back_with_its_consumer(self) -> None:
        play = Playbook(resident("a", pinned=True), resident("b"))
        play.arrive("1", "a")
        assert change(play, resident("b")) == []
        assert change(play, resident("a", pinned=True), resident("b")) == []
        assert play["a"].pinned
