from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import aiohttp
import pytest
from aiohttp import http_parser, web
from structlog.testing import capture_logs

from mgpu.api import health, proxy
from mgpu.api.server import Deadlines, start_server, uses_c_parser
from mgpu.errors import ConfigError
from tests.api.conftest import Sites

SOON = Deadlines(head_s=0.1, linger_s=0.1, close_s=0.1)


async def plain_app() -> web.Application:
    app = web.Application()
    app.router.add_get("/healthz", health.healthz)
    return app


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"G",
        b"GET /healthz HTTP/1.1\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: b",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r",
        b"\r\n",
    ],
)
async def test_a_request_head_that_stalls_is_dropped(sites: Sites, sent: bytes) -> None:
    site = await sites.broker(deadlines=SOON)
    client = await site.raw()

    await client.send(sent)

    assert await client.rest() == b""


async def test_a_head_that_trickles_is_dropped_too(sites: Sites) -> None:
    site = await sites.broker(deadlines=SOON)
    client = await site.raw()
    end = asyncio.create_task(client.rest())

    while not end.done():
        await client.send(b"G" if client.writer.transport.get_write_buffer_size() == 0 else b"")
        await asyncio.wait([end], timeout=0.02)
        if client.writer.transport.is_closing():
            break

    assert await asyncio.gather(end, return_exceptions=True)


async def test_the_second_head_on_a_connection_has_a_deadline_as_well(sites: Sites) -> None:
    site = await sites.broker(deadlines=SOON)
    client = await site.raw()

    await client.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /heal")
    head = await client.head()
    await client.read(int(head.get("Content-Length") or 0))

    assert await client.rest() == b""


async def test_a_long_job_does_not_run_into_the_deadline_of_heads(sites: Sites) -> None:
    async def slow(_request: web.Request) -> web.StreamResponse:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), timeout=0.3)
        return web.Response(text="late")

    site = await sites.broker(await sites.upstream(slow), deadlines=SOON)

    async with site.client.get(site.url("/v1/tts")) as response:
        assert await response.text() == "late"


async def test_a_body_that_no_handler_wants_and_that_stalls_ends_the_connection(
    sites: Sites,
) -> None:
    site = await sites.broker(deadlines=SOON)
    client = await site.raw()

    await client.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nabc")
    head = await client.head()
    await client.read(int(head.get("Content-Length") or 0))

    assert await client.rest() == b""


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost localhost\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 500 + b"\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nA: " + b"b" * 20_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer SECRET\r\nA B: x\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_a_problem_and_one_quiet_line(sites: Sites, sent: bytes) -> None:
    site = await sites.broker()
    client = await site.raw()
    with capture_logs() as logs:
        await client.send(sent)

        status, problem = await client.problem()
        rest = await client.rest()

    assert (status, problem["type"], rest) == (400, "urn:mgpu:bad-request", b"")
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("request is not HTTP", "info")
    ]
    assert "SECRET" not in str(logs) + str(problem)


async def test_garbage_behind_a_request_spoils_only_what_follows(sites: Sites) -> None:
    async def length(request: web.Request) -> web.StreamResponse:
        return web.Response(text=str(len(await request.read())))

    site = await sites.broker(await sites.upstream(length))
    await site.broker.hold()
    client = await site.raw()
    await client.send(b"POST /v1/tts HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n")
    await site.broker.until(lambda broker: bool(broker.waiting))

    await client.send(b"abc")
    await client.send(b"\x00\x01garbage\r\n\r\n")
    site.broker.let_go()

    head = await client.head()
    assert head.status == 200
    assert await client.read(int(head.get("Content-Length") or 0)) == b"3"
    assert (await client.problem())[0] == 400


async def test_a_bug_is_a_500_without_details_and_a_traceback_in_the_log(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = await sites.broker()

    def broken() -> None:
        raise KeyError("inner workings")

    monkeypatch.setattr(site.broker, "snapshot", broken)
    with capture_logs() as logs:
        async with site.client.get(site.url("/api/status")) as response:
            assert response.status == 500
            document = await response.json(content_type="application/problem+json")

    assert document["type"] == "urn:mgpu:internal"
    assert "inner" not in str(document)
    assert logs[0]["log_level"] == "error"
    assert isinstance(logs[0]["exc_info"], KeyError)


async def test_a_bug_after_the_first_byte_breaks_the_connection(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = asyncio.Event()

    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half")
        await go_on.wait()
        await response.write(b"more")
        return response

    site = await sites.broker(await sites.upstream(half))
    client = await site.raw()
    await client.send(b"GET /v1/tts HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await client.head()
    assert await client.chunk() == b"half"

    def broken(*_: object) -> None:
        raise KeyError("inner workings")

    monkeypatch.setattr(proxy, "_to_client", broken)
    with capture_logs() as logs:
        go_on.set()
        with pytest.raises(ConnectionResetError):
            await client.rest()
    assert [line["event"] for line in logs] == ["handler broke"]


async def test_it_listens_on_an_address(sites: Sites) -> None:
    server = await start_server(await plain_app(), "127.0.0.1:0")
    async with (
        aiohttp.ClientSession() as client,
        client.get(f"http://{server.addresses[0]}/healthz") as response,
    ):
        assert response.status == 200
    await server.close()


async def test_it_listens_on_ipv6(sites: Sites) -> None:
    server = await start_server(await plain_app(), "[::1]:0")
    try:
        assert server.addresses[0].startswith("[::1]:")
    finally:
        await server.close()


async def test_it_listens_on_a_unix_socket_and_takes_it_away_again(tmp_path: Path) -> None:
    path = tmp_path / "mgpu.sock"
    server = await start_server(await plain_app(), f"unix:{path}")
    assert server.addresses == (f"unix:{path}",)
    assert path.stat().st_mode & 0o777 == 0o660

    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as client,
        client.get("http://localhost/healthz") as response,
    ):
        assert response.status == 200
    await server.close()

    assert not path.exists()


async def test_a_unix_socket_that_a_dead_program_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "mgpu.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    server = await start_server(await plain_app(), f"unix:{path}")

    assert server.addresses
    await server.close()


async def test_a_unix_socket_in_use_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mgpu.sock"
    first = await start_server(await plain_app(), f"unix:{path}")

    with pytest.raises(ConfigError, match="another program listens"):
        await start_server(await plain_app(), f"unix:{path}")

    assert path.is_socket()
    await first.close()


async def test_an_address_in_use_is_an_error_that_names_it(sites: Sites) -> None:
    site = await sites.broker()

    address = f"127.0.0.1:{site.port}"
    with pytest.raises(ConfigError) as raised:
        await start_server(await plain_app(), address)
    assert str(raised.value) == (
        f"server.listen: cannot listen on {address}: Address already in use: "
        "another program listens there, or a broker that runs already"
    )


async def test_an_address_that_the_machine_does_not_have_is_said_to_be_none_of_its() -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1:0: .*: this machine has no such address$"):
        await start_server(await plain_app(), "192.0.2.1:0")


async def test_sockets_that_are_handed_over_win(tmp_path: Path) -> None:
    tcp, unix = socket.socket(), socket.socket(socket.AF_UNIX)
    tcp.bind(("127.0.0.1", 0))
    tcp.listen()
    unix.bind(str(tmp_path / "handed.sock"))
    unix.listen()

    server = await start_server(await plain_app(), "unix:/nowhere/at/all", [tcp, unix])

    assert server.addresses == (
        f"127.0.0.1:{tcp.getsockname()[1]}",
        f"unix:{tmp_path / 'handed.sock'}",
    )
    async with (
        aiohttp.ClientSession() as client,
        client.get(f"http://{server.addresses[0]}/healthz") as response,
    ):
        assert response.status == 200
    await server.close()
    assert (tmp_path / "handed.sock").exists()  # systemd's, not ours


async def test_closing_ends_what_still_runs(sites: Sites) -> None:
    begun = asyncio.Event()

    async def stuck(_request: web.Request) -> web.StreamResponse:
        begun.set()
        await asyncio.Event().wait()
        return web.Response()

    site = await sites.broker(await sites.upstream(stuck))
    client = await site.raw()
    await client.send(b"GET /v1/tts HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await begun.wait()
    with capture_logs() as logs:
        await site.server.close()

    assert site.broker.outcomes == {"job-1": "cancelled"}
    assert not logs


def test_the_c_parser_is_in_use() -> None:
    assert uses_c_parser()


async def test_the_python_parser_is_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_parser, "HttpRequestParser", http_parser.HttpRequestParserPy)
    with capture_logs() as logs:
        server = await start_server(await plain_app(), "127.0.0.1:0")
    await server.close()

    assert [line["log_level"] for line in logs] == ["warning"]
