"""The stream of events, as a client reads it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from mgpu.api import events
from mgpu.api.deps import DEPS
from mgpu.core.effects import Evicted
from tests.api.conftest import Site, Sites


async def next_event(stream: aiohttp.ClientResponse) -> tuple[str, Any]:
    """The next event's kind and data; a comment is ``("", None)``."""
    async with asyncio.timeout(5):
        lines = []
        while line := (await stream.content.readline()).decode().rstrip("\n"):
            lines.append(line)
    if lines[0].startswith(":"):
        return "", None
    kind, data = lines
    return kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))


async def test_the_first_event_is_the_whole_status_and_then_comes_what_happens(
    sites: Sites,
) -> None:
    site = await sites.broker()
    feed = site.app[DEPS].feed
    async with site.client.get(site.url("/api/events")) as stream:
        assert stream.content_type == "text/event-stream"
        assert stream.headers["Cache-Control"] == "no-store"
        kind, status = await next_event(stream)
        feed.observe(Evicted("a", "b", 100))
        evicted = await next_event(stream)
        feed.look(1)
        queue = await next_event(stream)
        feed.close()
        assert await stream.content.read() == b""
    assert kind == "status"
    assert status["consumers"]["tts"]["state"] == "absent"
    assert evicted == ("eviction", {"victim": "a", "target": "b", "need_mib": 100})
    assert queue == ("queue", {"queue": [], "paused": False, "draining": False})


async def test_when_nothing_happens_there_is_a_sign_of_life_with_fresh_estimates(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "QUIET_S", 0.05)
    site = await sites.broker()
    async with site.client.get(site.url("/api/events")) as stream:
        await next_event(stream)
        assert await next_event(stream) == ("", None)
        site.broker.eta_s = 7.0
        await site.broker.hold()
        job = asyncio.create_task(site.client.post(site.url("/v1/tts")))
        async with asyncio.timeout(5):
            while (event := await next_event(stream))[0] != "queue":
                assert event == ("", None)
        assert [(w["position"], w["eta_s"]) for w in event[1]["queue"]] == [(1, 7.0)]
        site.broker.let_go()
        (await job).close()


async def test_a_reader_that_takes_nothing_is_let_go(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "WRITE_S", 0.05)
    monkeypatch.setattr(events, "PAUSE_S", 0.0)
    site = await sites.broker()
    feed = site.app[DEPS].feed
    client = await site.raw()
    await client.send(b"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")

    await flood_until_nobody_follows(site)

    with feed.follow() as reader:
        assert await reader.news(1.0) is not None


async def flood_until_nobody_follows(site: Site) -> None:
    feed = site.app[DEPS].feed
    async with asyncio.timeout(20):
        while not feed.readers:  # noqa: ASYNC110  nothing tells when somebody follows
            await asyncio.sleep(0.001)
        while feed.readers:
            for _ in range(200):
                feed.observe(Evicted("a" * 1000, "b", 100))
            await asyncio.sleep(0.001)


async def test_only_the_head_is_sent_when_only_that_is_asked_for(sites: Sites) -> None:
    site = await sites.broker()
    async with asyncio.timeout(5), site.client.head(site.url("/api/events")) as response:
        assert response.status == 200
