"""What a consumer is loaded with, and who wants it otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from mgpu.core.model import ConsumerPolicy, Order
from tests.core.playbook import Playbook, absent, resident
from tests.core.test_reloading import change


def a(**policy: Any) -> ConsumerPolicy:
    return absent("a", load_key="own", **policy)


def loaded(key: str | None, *others: ConsumerPolicy, **policy: Any) -> Playbook:
    """A playbook in which ``a`` was loaded with a key by a job that is over."""
    rules = {k: policy.pop(k) for k in ("order", "max_overtake_s") if k in policy}
    play = Playbook(a(**policy), *others, **rules)
    play.load("before", "a", key)
    play.comes("a")
    return play


class TestALoad:
    def test_is_done_with_what_the_next_in_line_wants(self) -> None:
        play = Playbook(a())
        assert play.arrive("1", "a", load_key="long") == ["load a with long"]
        assert play.comes("a") == ["grant 1"]
        assert play["a"].loaded_key == "long"

    def test_is_as_configured_for_one_that_wants_nothing(self) -> None:
        play = Playbook(a())
        assert play.arrive("1", "a") == ["load a"]
        assert play["a"].loaded_key == "own"

    def test_with_what_is_configured_can_be_wanted_too(self) -> None:
        play = loaded(None)
        assert play.arrive("1", "a", load_key="own") == ["grant 1"]

    def test_that_failed_is_tried_again_with_what_is_wanted_by_then(self) -> None:
        play = Playbook(a())
        play.arrive("1", "a", load_key="long")
        play.arrive("2", "a", load_key="short")
        play.leave("1")
        assert play.load_fails("a") == ["load a with short"]
        assert play.comes("a") == ["grant 2"]

    def test_whose_job_left_meanwhile_is_done_again_for_the_next(self) -> None:
        play = Playbook(a())
        play.arrive("1", "a", load_key="long")
        play.arrive("2", "a", load_key="short")
        play.leave("1")
        assert play.comes("a") == ["unload a"]
        assert play.leaves("a") == ["load a with short"]
        assert play.comes("a") == ["grant 2"]


class TestAJobThatWantsNothing:
    def test_takes_what_is_there(self) -> None:
        play = loaded("long")
        assert play.arrive("1", "a") == ["grant 1"]

    def test_goes_together_with_those_that_want_what_is_there(self) -> None:
        play = loaded("long")
        play.arrive("1", "a")
        play.arrive("2", "a", load_key="short")
        play.arrive("3", "a")
        play.arrive("4", "a", load_key="long")
        assert play.end("1") == ["done 1", "grant 3"]
        assert play.end("3") == ["done 3", "grant 4"]
        assert play.end("4") == ["done 4", "unload a"]


class TestAJobThatWantsItOtherwise:
    def test_has_an_idle_consumer_loaded_anew(self) -> None:
        play = loaded(None)
        assert play.arrive("1", "a", load_key="long") == ["unload a"]
        assert play.leaves("a") == ["load a with long"]
        assert play.comes("a") == ["grant 1"]
        assert play.state.evictions == 0

    def test_waits_until_nothing_runs_there(self) -> None:
        play = loaded("long", concurrency=2)
        play.arrive("1", "a", load_key="long")
        assert play.arrive("2", "a", load_key="short") == []
        assert play.end("1") == ["done 1", "unload a"]
        play.leaves("a")
        assert play.comes("a") == ["grant 2"]

    def test_waits_while_somebody_else_uses_it(self) -> None:
        play = loaded("long")
        play.probe("a", resident=True, busy=True)
        assert play.arrive("1", "a", load_key="short") == []
        assert play.probe("a", resident=True) == ["unload a"]

    def test_waits_on_when_the_unload_was_not_even_asked(self) -> None:
        play = loaded("long")
        play.arrive("1", "a", load_key="short")
        assert play.declines("a") == []
        assert play.arrive("2", "a", load_key="long") == ["grant 2"]
        play.end("2")
        assert play.probe("a", resident=True) == ["unload a"]

    def test_is_refused_where_there_is_no_way(self) -> None:
        play = loaded("long", can_unload=False)
        assert play.arrive("1", "a", load_key="short") == ["rejected 1: bad-request"]
        assert play.arrive("2", "a", load_key="long") == ["grant 2"]

    def test_is_refused_by_one_that_its_first_job_loads(self) -> None:
        play = Playbook(absent("a", can_load=False), resident("b"), total_mib=12000)
        assert play.arrive("1", "a", load_key="long") == ["rejected 1: bad-request"]
        assert play.states() == {"a": "absent", "b": "resident"}

    def test_has_to_wait_and_so_needs_a_place_in_the_queue(self) -> None:
        play = loaded("long")
        change(play, a(max_queue=0))
        assert play.arrive("1", "a", load_key="short") == ["rejected 1: queue-full"]
        assert play.states() == {"a": "resident"}
        assert play.arrive("2", "a", load_key="long") == ["grant 2"]

    def test_has_one_that_was_found_resident_loaded_anew(self) -> None:
        """Nobody knows with what it was loaded."""
        play = Playbook(resident("a", load_key="own"))
        assert play.arrive("1", "a") == ["grant 1"]
        play.end("1")
        assert play.arrive("2", "a", load_key="own") == ["unload a"]

    def test_has_one_loaded_anew_that_came_back_by_itself(self) -> None:
        play = loaded("long")
        play.probe("a", reachable=False)
        play.probe("a", resident=True)
        assert play.arrive("1", "a", load_key="long") == ["unload a"]

    def test_is_told_when_the_unload_fails(self) -> None:
        play = loaded("long")
        play.arrive("1", "a", load_key="short")
        assert play.unload_fails("a") == ["rejected 1: consumer-cooldown"]


class TestAPersonsLoad:
    def test_with_what_is_there_is_done_at_once(self) -> None:
        play = loaded("long")
        assert play.load("1", "a", "long") == ["done 1"]
        assert play.load("2", "a") == ["done 2"]

    def test_with_something_else_is_done_when_that_is_loaded(self) -> None:
        play = loaded("long")
        assert play.load("1", "a", "short") == ["unload a"]
        assert play.load("2", "a", "other") == []
        assert play.leaves("a") == ["load a with short"]
        assert play.comes("a") == ["done 1", "unload a"]
        play.leaves("a")
        assert play.comes("a") == ["done 2"]


class TestTheOrder:
    def test_serves_those_together_that_want_the_same(self) -> None:
        play = loaded("A")
        for number, key in enumerate("ABAB", start=1):
            play.arrive(str(number), "a", load_key=key)
        assert play.end("1") == ["done 1", "grant 3"]
        assert play.end("3") == ["done 3", "unload a"]
        play.leaves("a")
        assert play.comes("a") == ["grant 2"]
        assert play.end("2") == ["done 2", "grant 4"]

    def test_holds_nobody_up_for_longer_than_anybody_may_be_overtaken(self) -> None:
        play = loaded("A", max_overtake_s=10.0)
        for number, key in enumerate("ABA", start=1):
            play.arrive(str(number), "a", load_key=key)
        play.after(10.0)
        assert play.end("1") == ["done 1", "unload a"]

    def test_puts_a_higher_priority_first(self) -> None:
        play = loaded("A")
        play.arrive("1", "a", load_key="A")
        play.arrive("2", "a", load_key="A")
        play.arrive("3", "a", load_key="B", priority=1)
        assert play.end("1") == ["done 1", "unload a"]
        assert play.leaves("a") == ["load a with B"]

    def test_of_arrival_is_kept(self) -> None:
        play = loaded("A", order=Order.ARRIVAL)
        for number, key in enumerate("ABA", start=1):
            play.arrive(str(number), "a", load_key=key)
        assert play.end("1") == ["done 1", "unload a"]

    def test_gives_the_room_to_whoever_is_next_when_nobody_wants_it_any_more(self) -> None:
        play = loaded("A", absent("b", 20000))
        play.arrive("1", "a", load_key="B")
        play.arrive("2", "b")
        play.leave("1")
        assert play.leaves("a") == ["load b"]


class TestAnotherLoadInTheConfiguration:
    def test_has_an_idle_one_unloaded_and_loaded_for_its_next_job(self) -> None:
        play = loaded(None)
        assert change(play, absent("a", load_key="new")) == ["unload a"]
        assert play.leaves("a") == []
        assert play.after(60.0) == []
        assert play.arrive("1", "a") == ["load a"]
        assert play.comes("a") == ["grant 1"]
        assert play["a"].loaded_key == "new"

    def test_lets_the_running_job_end_and_keeps_those_that_wait(self) -> None:
        play = loaded(None)
        play.arrive("1", "a")
        play.arrive("2", "a")
        assert change(play, absent("a", load_key="new")) == []
        assert play.end("1") == ["done 1", "unload a"]
        assert play.leaves("a") == ["load a"]
        assert play.comes("a") == ["grant 2"]

    def test_counts_for_a_load_that_has_begun(self) -> None:
        play = Playbook(a())
        play.arrive("1", "a")
        play.load("2", "a")
        change(play, absent("a", load_key="new"))
        assert play.comes("a") == ["unload a"]
        assert play.leaves("a") == ["load a"]
        assert play.comes("a") == ["done 2", "grant 1"]

    def test_brings_a_pinned_one_back_by_itself(self) -> None:
        play = Playbook(a(pinned=True))
        play.after(0.0)
        play.memory(24576)
        play.comes("a")
        assert change(play, absent("a", load_key="new", pinned=True)) == ["unload a"]
        play.leaves("a")
        play.after(600.0)
        assert play.comes("a")[-1].startswith("done preload-a")
        assert play["a"].loaded_key == "new"

    def test_counts_for_one_that_was_found_resident(self) -> None:
        play = Playbook(resident("a", load_key="own"))
        assert change(play, resident("a", load_key="new")) == ["unload a"]

    def test_that_is_what_is_loaded_again_changes_nothing(self) -> None:
        play = loaded("long")
        assert change(play, a(priority=1)) == []

    def test_waits_while_somebody_else_uses_it(self) -> None:
        play = loaded(None)
        play.probe("a", resident=True, busy=True)
        assert change(play, absent("a", load_key="new")) == []
        assert play.load("1", "a") == []
        assert play.probe("a", resident=True) == ["unload a"]

    @pytest.mark.parametrize("policy", [{"can_unload": False}, {"can_load": False}])
    def test_leaves_one_alone_that_cannot_be_loaded_anew(self, policy: dict[str, Any]) -> None:
        play = Playbook(resident("a", load_key="own", **policy))
        assert change(play, resident("a", load_key="new", **policy)) == []
        assert play.arrive("1", "a") == ["grant 1"]

    def test_keeps_what_a_job_wants_that_waits(self) -> None:
        play = loaded(None)
        play.arrive("1", "a")
        play.arrive("2", "a", load_key="long")
        change(play, absent("a", load_key="new"))
        play.end("1")
        assert play.leaves("a") == ["load a with long"]
        assert play.comes("a") == ["grant 2"]
