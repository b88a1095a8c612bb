from __future__ import annotations

import asyncio

from tests.api.conftest import Sites


async def test_jobs_that_run_and_wait_are_shown_and_cancelled(sites: Sites) -> None:
    site = await sites.broker()
    site.broker.eta_s = 4.25
    await site.broker.hold()
    waiting = asyncio.create_task(site.client.post(site.url("/v1/tts")))
    await site.broker.until(lambda broker: broker.waiting == ["job-1"])
    document = {
        "job": "job-1",
        "consumer": "tts",
        "state": "queued",
        "priority": 0,
        "position": 1,
        "waited_s": 1.5,
        "eta_s": 4.25,
        "ran_s": None,
    }

    async with site.client.get(site.url("/api/jobs")) as response:
        assert await response.json() == {"jobs": [document]}
    async with site.client.get(site.url("/api/jobs/job-1")) as response:
        assert await response.json() == document
    async with site.client.delete(site.url("/api/jobs/job-1")) as response:
        assert await response.json() == document
    assert site.broker.actions == ["cancel job-1"]

    site.broker.let_go()
    (await waiting).close()


async def test_a_job_that_is_not_there_is_unknown(sites: Sites) -> None:
    site = await sites.broker()
    for call in (site.client.get, site.client.delete):
        async with call(site.url("/api/jobs/nobody")) as response:
            assert response.status == 404
            assert (await response.json())["type"] == "urn:mgpu:unknown-job"
    assert site.broker.actions == []
