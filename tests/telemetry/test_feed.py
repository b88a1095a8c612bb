"""What happens, told to those who follow."""

from __future__ import annotations

from typing import get_args

import pytest

from mgpu.core.effects import Evicted, Fact, Finish, Grant, Phases, StateChanged
from mgpu.core.model import ConsumerState, Outcome, Refusal
from mgpu.errors import QueueFull
from mgpu.telemetry.feed import Feed, Happening, News
from tests.telemetry.test_facts import FACTS as LOGGED_FACTS

EVICTED = Evicted("a", "b", 100)
SOON_S = 5.0
AT_ONCE_S = 0.0


async def test_the_first_news_is_to_look_at_everything() -> None:
    with Feed().follow() as reader:
        assert await reader.news(SOON_S) == News(anew=True)


async def test_every_fact_is_told_in_order() -> None:
    feed = Feed()
    with feed.follow() as reader:
        await reader.news(SOON_S)
        feed.observe(StateChanged("a", ConsumerState.ABSENT, ConsumerState.LOADING, "room made"))
        feed.observe(Grant("1", "a", 7, (0,), Phases()))
        refusal = Refusal("job-timeout", "late")
        feed.observe(Finish("1", "a", Outcome.FAILED, refusal, Phases(), 2.0))
        news = await reader.news(SOON_S)
    assert news is not None
    state, granted, ended = news.happenings
    changed = {"consumer": "a", "old": "absent", "new": "loading", "reason": "room made"}
    assert state == Happening("state", changed)
    assert (granted.kind, granted.data["state"]) == ("job", "running")
    assert (ended.data["state"], ended.data["code"]) == ("failed", "job-timeout")


FACTS: dict[type, Fact] = {
    type(fact): fact for fact, _, _ in LOGGED_FACTS if not isinstance(fact, Grant)
}


async def test_every_kind_of_fact_has_a_name_of_its_own() -> None:
    feed = Feed()
    with feed.follow() as reader:
        await reader.news(SOON_S)
        for fact in FACTS.values():
            feed.observe(fact)
        news = await reader.news(SOON_S)
    assert news is not None
    assert FACTS.keys() == set(get_args(Fact))
    assert len({happening.kind for happening in news.happenings}) == len(FACTS)


async def test_a_reader_that_falls_behind_looks_anew_and_holds_no_more_than_its_bound() -> None:
    feed = Feed(most_waiting=2)
    with feed.follow() as slow, feed.follow() as quick:
        await slow.news(SOON_S)
        for _ in range(5):
            await quick.news(SOON_S)
            feed.observe(EVICTED)
        behind = await slow.news(SOON_S)
        feed.observe(EVICTED)
        assert behind == News(anew=True)
        assert await slow.news(SOON_S) == News((Happening("eviction", {"victim": "a", "target": "b", "need_mib": 100}),))  # fmt: skip  # noqa: E501
        two = await quick.news(SOON_S)
    assert two is not None
    assert len(two.happenings) == 2


async def test_a_changed_queue_is_told_once_however_often_it_changed() -> None:
    feed = Feed()
    feed.look(1)
    with feed.follow() as reader:
        await reader.news(SOON_S)
        feed.look(1)
        assert await reader.news(AT_ONCE_S) == News()
        feed.look(2)
        feed.look(3)
        assert await reader.news(SOON_S) == News(queue=True)


async def test_so_many_may_follow_and_a_place_is_free_when_one_has_gone() -> None:
    feed = Feed(most_readers=1)
    with feed.follow(), pytest.raises(QueueFull), feed.follow():
        pass
    with feed.follow() as reader:
        assert await reader.news(SOON_S) is not None


async def test_the_end_is_told_and_is_there_for_who_comes_later() -> None:
    feed = Feed()
    with feed.follow() as reader:
        feed.close()
        assert await reader.news(SOON_S) is None
    with feed.follow() as late:
        assert await late.news(SOON_S) is None
