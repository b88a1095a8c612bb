"""A service with a page that is open all day, behind a port of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import WSMsgType, web
from yarl import URL

from tests.acceptance.conftest import Machine, job
from tests.support.broker_process import BrokerProcess
from tests.support.servers import free_port
from tests.support.standin_consumer import StandinConsumer

POLL_S = 0.02


class Studio(StandinConsumer):
    """A stand-in for ComfyUI: a page, its polls and WebSocket, its check of Host and Origin."""

    sockets = 0

    async def polled(self, times: int) -> None:
        """Return when its page has asked so many times more."""
        async with asyncio.timeout(10):
            while self._polls.qsize():
                self._polls.get_nowait()
            for _ in range(times):
                await self._polls.get()

    def add_routes(self, app: web.Application) -> None:
        """What its page asks for."""
        self._polls = asyncio.Queue[None]()
        app.router.add_get("/", self._page)
        app.router.add_get("/queue", self._queue)
        app.router.add_get("/ws", self._web_socket)
        app.router.add_post("/api/userdata/{file}", self._save)

    async def _page(self, request: web.Request) -> web.Response:
        own = f"http://{request.host}"
        if request.host != self.url.removeprefix("http://"):
            return web.Response(status=403)
        return web.Response(status=403 if request.headers.get("Origin", own) != own else 200)

    async def _queue(self, _request: web.Request) -> web.Response:
        self._polls.put_nowait(None)
        return web.json_response({"queue_running": [], "queue_pending": []})

    async def _web_socket(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets += 1
        async for message in socket:
            await socket.send_str(f"heard {message.data}")
        self.sockets -= 1
        return socket

    async def _save(self, request: web.Request) -> web.Response:
        return web.json_response({"saved": request.match_info["file"], "as": request.raw_path})


@dataclass
class Tab:
    """An open page: it polls and keeps a WebSocket until it is closed."""

    url: str
    session: aiohttp.ClientSession
    statuses: list[int] = field(default_factory=list)

    async def poll(self) -> None:
        while True:
            async with self.session.get(f"{self.url}/queue") as response:
                self.statuses.append(response.status)
            await asyncio.sleep(POLL_S)


@asynccontextmanager
async def open_tab(url: str) -> AsyncIterator[Tab]:
    headers = {"Origin": url}
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{url}/ws?clientId=tab", headers=headers) as socket,
    ):
        tab = Tab(url, session)
        polling = asyncio.create_task(tab.poll())
        try:
            yield tab
            await socket.send_str("still there")
            message = await socket.receive(timeout=5)
            assert (message.type, message.data) == (WSMsgType.TEXT, "heard still there")
        finally:
            polling.cancel()
            await asyncio.wait((polling,))


async def studio_and_other(machine: Machine, **config: object) -> tuple[Studio, BrokerProcess, str]:
    port = free_port()
    studio = await machine.service(
        Studio,
        "studio",
        16_000,
        config={
            "listen": f"127.0.0.1:{port}",
            "not_activity": ["GET,HEAD /*", "* /api/userdata/*"],
            **config,
        },
    )
    await machine.consumer("other", 16_000)
    return studio, await machine.broker(), f"http://127.0.0.1:{port}"


async def test_an_open_tab_neither_loads_nor_locks_nor_counts_as_use(machine: Machine) -> None:
    studio, broker, url = await studio_and_other(machine, idle_unload_s=0.5)

    async with open_tab(url) as tab:
        async with tab.session.get(url, headers={"Origin": url}) as page:
            assert page.status == 200
        await studio.polled(10)
        assert studio.loads == 0

        async with tab.session.post(f"{url}/job", data=b"picture") as response:
            assert await response.read() == b"picture"
        assert studio.loads == 1
        await broker.until("c['studio']['state'] == 'absent'")
        assert studio.unloads == 1

        assert await job(broker, "other") == 200
        await studio.polled(10)
        assert (studio.loads, studio.unloads, studio.sockets) == (1, 1, 1)
        assert (await broker.status())["gpus"][0]["lock"]["consumer"] is None
        assert set(tab.statuses) == {200}


async def test_the_tab_goes_on_while_another_service_computes_in_its_place(
    machine: Machine,
) -> None:
    studio, broker, url = await studio_and_other(machine)
    other = machine.consumers["other"]

    async with open_tab(url) as tab:
        async with tab.session.post(f"{url}/job", data=b"x") as response:
            assert response.status == 200
        other.job_gate.close()
        computing = asyncio.create_task(job(broker, "other"))
        await other.job_gate.reached()
        waiting = asyncio.create_task(tab.session.post(f"{url}/job", data=b"y").__aenter__())
        await broker.until("s['queue'] and s['queue'][0]['consumer'] == 'studio'")

        await studio.polled(10)
        saved = await tab.session.post(
            URL(f"{url}/api/userdata/workflows%2Fx.json", encoded=True), data=b"{}"
        )
        assert (await saved.json())["as"] == "/api/userdata/workflows%2Fx.json"

        other.job_gate.open()
        assert await computing == 200
        async with await waiting as response:
            assert await response.read() == b"y"
        assert set(tab.statuses) == {200}
    assert not machine.referee.fouls
    assert studio.loads == 2


async def test_a_service_that_is_down_is_not_started_by_its_page(machine: Machine) -> None:
    studio, broker, url = await studio_and_other(machine)
    await studio.kill()

    async with aiohttp.ClientSession() as session:
        for _ in range(3):
            async with asyncio.timeout(1), session.get(f"{url}/queue") as response:
                assert response.status == 502
                document = await response.json(content_type="application/problem+json")
            assert document["detail"] == "studio cannot be reached: connection refused."
    assert (await broker.status())["loads"] == 0


async def test_an_open_tab_does_not_keep_the_broker_from_stopping(machine: Machine) -> None:
    _, broker, url = await studio_and_other(machine)

    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{url}/ws", headers={"Origin": url}) as socket,
    ):
        assert await broker.stop(within_s=10) == 0
        message = await socket.receive(timeout=5)
        assert message.type in {WSMsgType.CLOSED, WSMsgType.ERROR, WSMsgType.CLOSE}


async def test_two_brokers_cannot_have_the_same_port(machine: Machine) -> None:
    taken = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    await machine.consumer("studio", 100, config={"listen": f"127.0.0.1:{port}"})

    async with taken:
        with pytest.raises(AssertionError, match=f"studio.listen: cannot listen on .*:{port}"):
            await machine.broker()
