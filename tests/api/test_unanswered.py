from __future__ import annotations

import asyncio

from mgpu.api.unanswered import UNANSWERED
from tests.api.conftest import Sites
from tests.api.jobs import Stuck

DEADLINE_S = 5.0


async def test_a_job_without_an_answer_is_told_that_the_broker_ends(sites: Sites) -> None:
    consumer = Stuck()
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
    consumer = Stuck()
    site = await sites.broker(await sites.upstream(consumer), consumer={"listen": "127.0.0.1:0"})
    asking = asyncio.create_task(site.client.get(site.own_url("/tts")))
    await consumer.begun.wait()

    site.app[UNANSWERED].tell()

    async with asyncio.timeout(DEADLINE_S), await asking as response:
        assert response.status == 503


async def test_an_answer_that_has_begun_goes_on(sites: Sites) -> None:
    consumer = Stuck(answer=True)
    site = await sites.broker(await sites.upstream(consumer))
    async with site.client.post(site.url("/v1/tts"), data=b"x") as response:
        await consumer.begun.wait()
        assert await response.content.readany() == b"data: 1\n\n"

        site.app[UNANSWERED].tell()

        consumer.may_end.set()
        async with asyncio.timeout(DEADLINE_S):
            assert await response.read() == b"data: 2\n\n"
