from __future__ import annotations

import math
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from mgpu import errors
from tests.api.conftest import Sites
from tests.api.fake_broker import Asked
from tests.api.jobs import Stuck, answer


async def test_a_job_that_runs_too_long_is_a_504(sites: Sites) -> None:
    consumer = Stuck()
    site = await sites.broker(await sites.upstream(consumer))
    site.broker.job_timeout_s = 0.05

    with capture_logs() as logs:
        async with site.client.post(site.url("/v1/tts"), data=b"x") as response:
            assert response.status == 504
            document = await response.json(content_type="application/problem+json")
            assert document["type"] == "urn:mgpu:job-timeout"
            assert response.headers["X-MGPU-Job"] == "job-1"
            assert response.headers["X-MGPU-Consumer"] == "tts"
    await consumer.cancelled.wait()
    assert not [line for line in logs if line["event"] == "client left"]


async def test_a_refused_job_says_which_one_it_was(sites: Sites) -> None:
    site = await sites.broker(await sites.upstream(answer))
    site.broker.refuse = errors.QueueFull()

    async with site.client.post(site.url("/v1/tts"), data=b"x") as response:
        assert response.status == 429
        assert response.headers["X-MGPU-Job"] == "job-1"
        assert response.headers["X-MGPU-Consumer"] == "tts"
    async with site.client.get(site.url("/nowhere")) as response:
        assert "X-MGPU-Job" not in response.headers


async def test_a_job_that_runs_too_long_while_it_streams_is_broken_off(sites: Sites) -> None:
    consumer = Stuck(answer=True)
    site = await sites.broker(await sites.upstream(consumer))
    site.broker.job_timeout_s = 0.05

    async with site.client.post(site.url("/v1/tts"), data=b"x") as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientError):
            await response.read()
    await consumer.cancelled.wait()


async def test_an_answer_tells_its_job_and_consumer(sites: Sites) -> None:
    site = await sites.broker(await sites.upstream(answer))

    async with site.client.get(site.url("/v1/tts")) as response:
        assert response.headers["X-MGPU-Job"] == "job-1"
        assert response.headers["X-MGPU-Consumer"] == "tts"
    assert site.broker.outcomes == {"job-1": "done"}


@pytest.mark.parametrize(
    ("headers", "priority", "max_wait_s"),
    [
        ({}, None, None),
        ({"X-MGPU-Priority": "100"}, 100, None),
        ({"X-MGPU-Priority": "-100"}, -100, None),
        ({"X-MGPU-Priority": "+7"}, 7, None),
        ({"X-MGPU-Max-Wait": "0.5"}, None, 0.5),
        ({"X-MGPU-Max-Wait": "30"}, None, 30.0),
        ({"X-MGPU-Max-Wait": "999999"}, None, 60.0),
    ],
)
async def test_a_job_may_ask_for_priority_and_a_shorter_wait(
    sites: Sites, headers: dict[str, str], priority: int | None, max_wait_s: float | None
) -> None:
    async def check(request: web.Request) -> web.StreamResponse:
        assert not [name for name in request.headers if name.startswith("X-MGPU")]
        return web.Response()

    site = await sites.broker(await sites.upstream(check), scheduler={"max_wait_s": 60})

    async with site.client.get(site.url("/v1/tts"), headers=headers) as response:
        assert response.status == 200
    assert site.broker.asked == {"job-1": Asked("tts", priority, max_wait_s)}


@pytest.mark.parametrize(
    ("wish", "seconds"),
    [
        ("0", 0.0),
        ("90", 90.0),
        ("0.5", 0.5),
        ("-1", math.inf),
        ("-0.5", math.inf),
        ("never", math.inf),
        ("Never", math.inf),
    ],
)
async def test_a_job_may_say_how_long_its_consumer_may_be_idle(
    sites: Sites, wish: str, seconds: float
) -> None:
    async def check(request: web.Request) -> web.StreamResponse:
        assert not [name for name in request.headers if name.startswith("X-MGPU")]
        return web.Response()

    site = await sites.broker(await sites.upstream(check))

    headers = {"X-MGPU-Idle-Unload": wish}
    async with site.client.get(site.url("/v1/tts"), headers=headers) as response:
        assert response.status == 200
    assert site.broker.asked["job-1"].idle_unload_s == seconds


@pytest.mark.parametrize(
    "headers",
    [
        {"X-MGPU-Idle-Unload": ""},
        {"X-MGPU-Idle-Unload": "always"},
        {"X-MGPU-Idle-Unload": "--1"},
        {"X-MGPU-Idle-Unload": "1e3"},
        {"X-MGPU-Idle-Unload": "inf"},
        {"X-MGPU-Idle-Unload": "nan"},
        {"X-MGPU-Priority": "101"},
        {"X-MGPU-Priority": "-101"},
        {"X-MGPU-Priority": "1.5"},
        {"X-MGPU-Priority": "high"},
        {"X-MGPU-Priority": ""},
        {"X-MGPU-Priority": "٣"},
        {"X-MGPU-Max-Wait": "0"},
        {"X-MGPU-Max-Wait": "-1"},
        {"X-MGPU-Max-Wait": "nan"},
        {"X-MGPU-Max-Wait": "inf"},
        {"X-MGPU-Max-Wait": "1e3"},
        {"X-MGPU-Max-Wait": "soon"},
        {"X-MGPU-Max-Wait": "0.0"},
    ],
)
async def test_a_wish_that_makes_no_sense_is_refused_by_name(
    sites: Sites, headers: dict[str, str]
) -> None:
    site = await sites.broker(await sites.upstream(answer))

    async with site.client.get(site.url("/v1/tts"), headers=headers) as response:
        assert response.status == 400
        document = await response.json(content_type="application/problem+json")
        assert next(iter(headers)) in document["detail"]
    assert not site.broker.asked


@pytest.mark.parametrize("api_keys", [(), ("key",)])
async def test_authorization_reaches_a_consumer_unless_it_is_the_brokers(
    sites: Sites, api_keys: tuple[str, ...]
) -> None:
    seen: list[str | None] = []

    async def look(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers.get("Authorization"))
        return web.Response()

    site = await sites.broker(await sites.upstream(look), api_keys=api_keys)

    async with site.client.get(
        site.url("/v1/tts"), headers={"Authorization": "Bearer key"}
    ) as response:
        assert response.status == 200
    assert seen == [None if api_keys else "Bearer key"]


async def test_an_origin_does_not_reach_a_consumer(sites: Sites) -> None:
    seen: list[str] = []

    async def look(request: web.Request) -> web.StreamResponse:
        seen.extend(request.headers)
        return web.Response()

    site = await sites.broker(await sites.upstream(look))
    headers: dict[str, Any] = {
        "Origin": f"http://127.0.0.1:{site.port}",
        "Sec-Fetch-Site": "same-origin",
        "Sec-Fetch-Mode": "cors",
    }

    async with site.client.get(site.url("/consumers/tts/"), headers=headers) as response:
        assert response.status == 200
    assert not [name for name in seen if name == "Origin" or name.startswith("Sec-")]
