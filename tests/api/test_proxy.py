from __future__ import annotations

import asyncio
import time

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from tests.api.conftest import Sites
from tests.api.jobs import echo


@pytest.mark.parametrize(
    "status", [200, 201, 202, 207, 226, 299, 400, 404, 418, 429, 500, 503, 599]
)
async def test_a_status_and_its_reason_pass_unchanged(sites: Sites, status: int) -> None:
    async def odd(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, reason="Odd Thing", text="own words")

    site = await sites.broker(await sites.upstream(odd))

    async with site.client.get(site.url("/v1/tts")) as response:
        assert (response.status, response.reason) == (status, "Odd Thing")
        assert await response.text() == "own words"
    assert site.broker.outcomes == {"job-1": "failed" if status >= 500 else "done"}


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_that_has_no_body_stays_without(sites: Sites, status: int) -> None:
    async def empty(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers={"ETag": '"x"'})

    site = await sites.broker(await sites.upstream(empty))

    for _ in range(2):  # the connection stays usable
        async with site.client.get(site.url("/v1/tts")) as response:
            assert response.status == status
            assert response.headers["ETag"] == '"x"'
            assert "Transfer-Encoding" not in response.headers
            assert "Content-Type" not in response.headers
            assert await response.read() == b""


async def test_head_keeps_the_length_of_what_get_would_bring(sites: Sites) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.method == "HEAD"
        return web.Response(body=b"x" * 12345)

    site = await sites.broker(await sites.upstream(answer))

    for _ in range(2):
        async with site.client.head(site.url("/v1/tts")) as response:
            assert response.headers["Content-Length"] == "12345"
            assert await response.read() == b""


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_redirect_is_passed_on_and_never_followed(
    sites: Sites, status: int, method: str
) -> None:
    asked: list[str] = []

    async def elsewhere(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return web.Response(status=status, headers={"Location": "/metadata"})

    site = await sites.broker(await sites.upstream(elsewhere))

    async with site.client.request(method, site.url("/v1/tts"), allow_redirects=False) as response:
        assert response.status == status
        assert response.headers["Location"] == "/metadata"
    assert asked == ["/tts"]


async def test_text_in_header_fields_that_is_not_utf_8_keeps_its_letters(sites: Sites) -> None:
    received: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nX-Name: M\xfcller\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    site = await sites.broker(await sites.raw_upstream(serve))
    client = await site.raw()

    await client.send(b"GET /v1/tts HTTP/1.1\r\nHost: localhost\r\nX-Name: M\xfcller\r\n\r\n")
    head = await client.head()

    assert head.get("X-Name") == "Müller".encode().decode("latin-1")
    assert b"X-Name: M\xc3\xbcller\r\n" in received[0]


async def test_duplicate_headers_arrive_in_order_both_ways(sites: Sites) -> None:
    received: list[tuple[str, str]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        for line in head.split("\r\n")[1:-2]:
            name, _, value = line.partition(": ")
            received.append((name, value))
        writer.write(
            b"HTTP/1.1 200 OK\r\nX-A: 1\r\nSet-Cookie: a=1\r\nX-A: 2\r\nSet-Cookie: b=2\r\n"
            b"Server: own/1\r\nDate: never\r\nX-Utf8: \xc3\xa4\r\nContent-Length: 0\r\n\r\n"
        )
        await writer.drain()

    site = await sites.broker(await sites.raw_upstream(serve))
    client = await site.raw()

    await client.send(
        b"GET /v1/tts HTTP/1.1\r\nHost: localhost\r\nX-B: 1\r\nCookie: a=1\r\nX-B: 2\r\n"
        b"X-Utf8: \xc3\xa4\r\nX-Empty: \r\n\r\n"
    )
    head = await client.head()

    broker_fields = {"X-MGPU-Job", "X-MGPU-Consumer", "Server-Timing"}
    assert [pair for pair in head.headers if pair[0] not in broker_fields] == [
        ("X-A", "1"),
        ("Set-Cookie", "a=1"),
        ("X-A", "2"),
        ("Set-Cookie", "b=2"),
        ("Server", "own/1"),
        ("Date", "never"),
        ("X-Utf8", "\u00c3\u00a4"),
        ("Content-Length", "0"),
    ]
    assert received[1:] == [
        ("X-B", "1"),
        ("Cookie", "a=1"),
        ("X-B", "2"),
        ("X-Utf8", "ä"),
        ("X-Empty", ""),
    ]
    assert received[0][0] == "Host"
    assert received[0][1] != "localhost"


async def test_no_cookie_is_kept_for_the_next_client(sites: Sites) -> None:
    cookies: list[str | None] = []

    async def setting(request: web.Request) -> web.StreamResponse:
        cookies.append(request.headers.get("Cookie"))
        return web.Response(headers={"Set-Cookie": "session=1"})

    site = await sites.broker(await sites.upstream(setting))

    for _ in range(2):
        async with site.client.get(site.url("/v1/tts")) as response:
            assert response.headers["Set-Cookie"] == "session=1"
    assert cookies == [None, None]


async def test_a_request_without_a_body_gets_none(sites: Sites) -> None:
    seen: list[tuple[str | None, str | None]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(
            (request.headers.get("Content-Length"), request.headers.get("Transfer-Encoding"))
        )
        return web.Response()

    site = await sites.broker(await sites.upstream(answer))

    for method in ("GET", "OPTIONS"):
        async with site.client.request(method, site.url("/v1/tts")) as response:
            assert response.status == 200
    assert seen == [(None, None), (None, None)]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_every_method_may_have_a_body(sites: Sites, method: str) -> None:
    site = await sites.broker(await sites.upstream(echo))

    async with site.client.request(method, site.url("/v1/tts"), data=b"body") as response:
        assert await response.read() == b"body"


async def test_a_path_and_query_reach_the_consumer_as_they_were_sent(sites: Sites) -> None:
    async def target(request: web.Request) -> web.StreamResponse:
        return web.Response(text=request.raw_path)

    site = await sites.broker(await sites.upstream(target))
    client = await site.raw()

    await client.send(
        b"GET /v1/tts/a%20b;v=1/%C3%A4/@x:y?q=%2F..%2f+&&r=//x HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )
    head = await client.head()

    assert await client.read(int(head.get("Content-Length") or 0)) == (
        b"/tts/a%20b;v=1/%C3%A4/@x:y?q=%2F..%2f+&&r=//x"
    )


async def test_an_answer_without_length_is_chunked_or_ends_with_the_connection(
    sites: Sites,
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nto the end")
        await writer.drain()

    site = await sites.broker(await sites.raw_upstream(serve))
    new, old = await site.raw(), await site.raw()

    await new.send(b"GET /v1/tts HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await old.send(b"GET /v1/tts HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n")

    head = await new.head()
    if head.get("Transfer-Encoding") == "chunked":
        body = b""
        while chunk := await new.chunk():
            body += chunk
    else:
        body = await new.read(int(head.get("Content-Length") or 0))
    assert body == b"to the end"
    await old.head()
    assert (await old.rest()).startswith(b"to the end")


async def test_an_http_1_0_client_gets_a_chunked_answer_without_the_chunks(sites: Sites) -> None:
    go_on = asyncio.Event()

    async def chunked(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"one ")
        await go_on.wait()
        await response.write(b"two")
        return response

    site = await sites.broker(await sites.upstream(chunked))
    client = await site.raw()

    await client.send(b"GET /v1/tts HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n")
    head = await client.head()
    go_on.set()

    assert head.get("Transfer-Encoding") is None
    assert await client.rest() == b"one two"


async def test_interim_answers_of_the_consumer_are_not_the_answer(sites: Sites) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()

    site = await sites.broker(await sites.raw_upstream(serve))

    async with site.client.get(site.url("/v1/tts")) as response:
        assert (response.status, await response.text()) == (200, "ok")


async def test_trailers_are_dropped_and_the_body_is_whole(sites: Sites) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
            b"2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n"
        )
        await writer.drain()

    site = await sites.broker(await sites.raw_upstream(serve))

    async with site.client.get(site.url("/v1/tts")) as response:
        assert await response.text() == "ok"
        assert "Trailer" not in response.headers


async def test_fields_of_the_consumers_connection_stay_with_it(sites: Sites) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\nConnection: close, X-Inner\r\nKeep-Alive: timeout=5\r\n"
            b"X-Inner: 1\r\nX-MGPU-Job: forged\r\nContent-Length: 0\r\n\r\n"
        )
        await writer.drain()

    site = await sites.broker(await sites.raw_upstream(serve))

    async with site.client.get(site.url("/v1/tts")) as response:
        assert {"X-Inner", "Keep-Alive", "Connection"}.isdisjoint(response.headers)
        assert response.headers.getall("X-MGPU-Job") == ["job-1"]


async def test_a_consumer_that_cannot_be_reached_is_a_502(sites: Sites, unused_port: int) -> None:
    site = await sites.broker(f"http://127.0.0.1:{unused_port}")

    async with site.client.post(site.url("/v1/tts"), data=b"x" * 100_000) as response:
        assert response.status == 502
        document = await response.json(content_type="application/problem+json")
        assert document["type"] == "urn:mgpu:consumer-failed"
        assert "refused" in document["detail"]
    assert site.broker.outcomes == {"job-1": "failed"}


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Control: a\x01b\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_an_answer_that_is_not_http_is_a_502(sites: Sites, answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    site = await sites.broker(await sites.raw_upstream(serve))

    async with site.client.post(site.url("/v1/tts")) as response:
        assert response.status == 502
        document = await response.json(content_type="application/problem+json")
        assert document["type"] == "urn:mgpu:consumer-failed"
    assert site.broker.outcomes == {"job-1": "failed"}


@pytest.mark.parametrize(
    "framing",
    [b"Content-Length: 100\r\n\r\npart", b"Transfer-Encoding: chunked\r\n\r\n4\r\npart\r\n"],
)
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_an_answer_that_breaks_off_ends_in_a_visibly_broken_connection(
    sites: Sites, framing: bytes, version: bytes
) -> None:
    break_off = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n" + framing)
        await writer.drain()
        await break_off.wait()

    site = await sites.broker(await sites.raw_upstream(serve))
    client = await site.raw()
    with capture_logs() as logs:
        await client.send(b"GET /v1/tts HTTP/" + version + b"\r\nHost: localhost\r\n\r\n")
        await client.head()
        part = (
            await client.chunk()
            if b"chunked" in framing and version == b"1.1"
            else (await client.read(4))
        )
        assert part == b"part"
        break_off.set()

        with pytest.raises(ConnectionResetError):
            await client.rest()
        await site.broker.until(lambda broker: broker.outcomes == {"job-1": "failed"})

    assert [line["event"] for line in logs] == ["consumer failed", "answer broken off"]
    assert not any("exc_info" in line for line in logs)


async def test_an_idempotent_request_is_not_repeated_after_its_first_byte(sites: Sites) -> None:
    asked = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await reader.readuntil(b"\r\n\r\n")
        asked += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart")
        await writer.drain()

    site = await sites.broker(await sites.raw_upstream(serve))

    with pytest.raises(aiohttp.ClientError):
        async with site.client.get(site.url("/v1/tts")) as response:
            await response.read()
    assert asked == 1


async def test_an_early_answer_to_a_long_upload_arrives(sites: Sites) -> None:
    async def early(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=409, text="no need for all that")

    site = await sites.broker(await sites.upstream(early))
    client = await site.raw()

    await client.send(
        b"POST /v1/tts HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
        + b"x" * 70_000
    )
    head = await client.head()

    assert head.status == 409
    assert await client.read(int(head.get("Content-Length") or 0)) == b"no need for all that"
    await site.broker.until(lambda broker: broker.outcomes == {"job-1": "done"})


async def test_the_connection_to_a_consumer_is_used_again(sites: Sites) -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await writer.drain()

    async def until_gone(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except asyncio.IncompleteReadError:
            return

    site = await sites.broker(await sites.raw_upstream(until_gone))

    for _ in range(3):
        async with site.client.get(site.url("/v1/tts")) as response:
            assert await response.text() == "ok"
    assert connections == 1


async def test_the_time_to_the_answers_head_is_told(sites: Sites) -> None:
    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response()

    site = await sites.broker(await sites.upstream(answer))
    started = time.perf_counter()

    async with site.client.get(site.url("/v1/tts")) as response:
        took_ms = (time.perf_counter() - started) * 1e3
        timing = response.headers["Server-Timing"]
        parts = [part.partition(";dur=") for part in timing.split(", ")]

    durations = {name: float(value) for name, _, value in parts}
    assert list(durations) == ["queue", "evict", "load", "upstream"]
    assert (durations["queue"], durations["evict"], durations["load"]) == (250.0, 500.0, 1000.0)
    assert 0 < durations["upstream"] < took_ms
