from __future__ import annotations

import asyncio

from aiohttp import web

from mgpu.api.unanswered import UNANSWERED
from tests.api.conftest import Sites

DEADLINE_S = 5.0


class Hanging:
    """A consumer that says ``begun``, and hangs; ``answer``: after the first bytes of an answer."""

    def __init__(self, *, answer: bool = False) -> None:
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()
        self.cancelled = asyncio.Event()
        self._answer = answer

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        try:
            if self._answer:
                await response.prepare(request)
                await response.write(b"first ")
            self.begun.set()
            await self.may_end.wait()
            if self._answer:
                await response.write(b"last")
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return response


async def test_a_job_without_an_answer_is_told_that_the_broker_ends(sites: Sites) -> None:
    consumer = Hanging()
    site = await sites.broker(await sites.upstream(consumer))
    asking = asyncio.create_task(site.client.post(site.url("/v1/tts"), data=b"x"))
    await consumer.begun.wait()

    site.app[UNANSWERED].tell()

    async with asyncio.timeout(DEADLINE_S), await asking as response:
        assert response.status == 503
        assert int(response.headers["Retry-After"]) >= 1
        document = await response.json(content_type="application/problem+json")
        assert document["type"] == "urn:mgpu:draining"
        await consumer.cancelled.wait()
    assert site.broker.outcomes == {"job-1": "cancelled"}


async def test_so_is_one_on_a_port_of_its_own(sites: Sites) -> None:
    consumer = Hanging()
    site = await sites.broker(await sites.upstream(consumer), consumer={"listen": "127.0.0.1:0"})
    asking = asyncio.create_task(site.client.get(site.own_url("/tts")))
    await consumer.begun.wait()

    site.app[UNANSWERED].tell()

    async with asyncio.timeout(DEADLINE_S), await asking as response:
        assert response.status == 503


async def test_an_answer_that_has_begun_goes_on(sites: Sites) -> None:
    consumer = Hanging(answer=True)
    site = await sites.broker(await sites.upstream(consumer))
    async with site.client.post(site.url("/v1/tts"), data=b"x") as response:
        await consumer.begun.wait()
        assert await response.content.readany() == b"first "

        site.app[UNANSWERED].tell()

        consumer.may_end.set()
        async with asyncio.timeout(DEADLINE_S):
            assert await response.read() == b"last"
