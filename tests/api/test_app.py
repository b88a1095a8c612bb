from __future__ import annotations

import asyncio
import logging
import re

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from mgpu import errors
from mgpu.api.deps import DEPS
from tests.api.conftest import Sites

KEY = "sk-planted-api-key"
OTHER_KEY = "sk-planted-other-key"
CONSUMER_SECRET = "planted-load-header"
SENT_SECRET = "planted-authorization"
QUERY_SECRET = "planted-query"
COOKIE_SECRET = "planted-cookie"
PLANTED = re.compile("planted")


async def test_planted_secrets_show_nowhere(
    sites: Sites, caplog: pytest.LogCaptureFixture, unused_port: int
) -> None:
    caplog.set_level(logging.DEBUG)
    broken = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"/tts/die" in head:
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart")
        await writer.drain()
        await broken.wait()

    broken.set()
    registry = CollectorRegistry()
    site = await sites.broker(
        await sites.raw_upstream(serve),
        api_keys=(KEY, OTHER_KEY),
        server={"api_keys": [KEY, OTHER_KEY]},
        consumer={
            "load": {"path": "/load", "headers": {"Authorization": CONSUMER_SECRET}},
            "unload": {"path": "/unload", "headers": {"X-Token": CONSUMER_SECRET}},
        },
        registry=registry,
    )
    told: list[str] = []
    with capture_logs() as logs:
        for path in (
            "/v1/tts",
            "/v1/tts/die",
            f"/v1/tts?token={QUERY_SECRET}",
            "/consumers/tts/x",
            "/consumers/nobody/x",
            "/nowhere",
            "/api/status",
            "/metrics",
            "/openapi.json",
            "/",
            "/readyz",
            "/v1/%2e%2e/x",
        ):
            for authorization in (f"Bearer {KEY}", f"Bearer {SENT_SECRET}", f"Basic {SENT_SECRET}"):
                headers = {"Authorization": authorization, "Cookie": f"s={COOKIE_SECRET}"}
                async with site.client.get(site.url(path), headers=headers) as response:
                    told.append(str(response.headers))
                    try:
                        told.append(await response.text())
                    except Exception as error:  # noqa: BLE001  broken off, as it shall be
                        told.append(type(error).__name__)
        for raw in (
            f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nBad Name: 1\r\n\r\n",
            f"GET / HTTP/1.1\r\nHost: {SENT_SECRET}\r\n\r\n",
            f"GET /?{QUERY_SECRET} HTTP/1.1\r\nHost: localhost\r\nX-MGPU-Priority: {KEY}\r\n\r\n",
            f"{SENT_SECRET} / HTTP/1.1\r\n\r\n",
        ):
            client = await site.raw()
            await client.send(raw.encode())
            told.append(str(await client.problem()))

    assert not PLANTED.search("".join(told))
    assert not PLANTED.search(str(logs))
    assert not PLANTED.search(caplog.text)


async def test_a_bugs_traceback_does_not_hold_what_was_sent(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = await sites.broker(api_keys=(KEY,))
    monkeypatch.setattr(site.broker, "snapshot", lambda: 1 / 0)
    with capture_logs() as logs:
        async with site.client.get(
            site.url("/api/status"), headers={"Authorization": f"Bearer {KEY}"}
        ) as response:
            assert response.status == 500
            assert not PLANTED.search(await response.text())
    assert not PLANTED.search(str(logs))


async def test_the_dependencies_do_not_print_their_keys(sites: Sites) -> None:
    site = await sites.broker(api_keys=(KEY,), server={"api_keys": [KEY]})

    assert not PLANTED.search(repr(site.app[DEPS]))


async def test_the_answers_do_not_tell_which_server_this_is(sites: Sites) -> None:
    site = await sites.broker()

    for path in ("/healthz", "/nowhere", "/"):
        async with site.client.get(site.url(path)) as response:
            assert "Server" not in response.headers


async def test_many_clients_at_once_are_all_answered(sites: Sites) -> None:
    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(text="ok")

    site = await sites.broker(await sites.upstream(answer))

    async def ask() -> str:
        async with site.client.post(site.url("/v1/tts"), data=b"x") as response:
            return await response.text()

    assert await asyncio.gather(*(ask() for _ in range(200))) == ["ok"] * 200
    assert set(site.broker.outcomes.values()) == {"done"}


@pytest.mark.parametrize("error", [errors.QueueFull, errors.Draining])
async def test_many_refusals_at_once_are_all_told(
    sites: Sites, error: type[errors.MgpuError]
) -> None:
    site = await sites.broker()
    site.broker.refuse = error()

    async def ask() -> tuple[int, bool]:
        async with site.client.post(site.url("/v1/tts"), data=b"x") as response:
            return response.status, "Retry-After" in response.headers

    answers = await asyncio.gather(*(ask() for _ in range(100)))

    assert set(answers) == {(429 if error is errors.QueueFull else 503, True)}
