import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from mgpu.cli.client import Client
from tests.support.servers import BadServer, serving

Mgpu = Callable[..., Awaitable[Any]]
Answer = Callable[[web.Request], Awaitable[web.Response]]
StartBroker = Callable[[Answer], Awaitable[TestServer]]


def _url(server: TestServer) -> str:
    return str(server.make_url(""))


async def test_nobody_at_the_address_is_exit_code_3_and_says_what_to_do(mgpu: Mgpu) -> None:
    url = f"http://127.0.0.1:{unused_port()}"

    result = await mgpu("status", "--url", url)

    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr == (
        f"mgpu: cannot reach the broker at {url}: Connection refused; "
        "start it with mgpu serve, or give its address with --url\n"
    )


async def test_a_socket_that_is_not_there_is_exit_code_3(mgpu: Mgpu, tmp_path: Path) -> None:
    result = await mgpu("status", "--url", f"unix:{tmp_path}/absent.sock")

    assert result.exit_code == 3
    assert f"cannot reach the broker at unix:{tmp_path}/absent.sock: No such file" in result.stderr


async def test_a_refusal_is_exit_code_1_and_shows_title_and_detail(
    mgpu: Mgpu, start_broker: StartBroker
) -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.json_response(
            {
                "type": "urn:mgpu:unknown-consumer",
                "title": "Unknown",
                "detail": "Did you mean tts?",
            },
            status=404,
            content_type="application/problem+json",
        )

    result = await mgpu("load", "tss", "--url", _url(await start_broker(refuse)))

    assert result.exit_code == 1
    assert result.stderr == "mgpu: Unknown: Did you mean tts?\n"


async def test_text_of_a_broker_cannot_steer_the_terminal(
    mgpu: Mgpu, start_broker: StartBroker
) -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.json_response(
            {"title": "[bold]No\x1b[2J", "detail": "\r\n"},
            status=503,
            content_type="application/problem+json",
        )

    result = await mgpu("unload", "tts", "--url", _url(await start_broker(refuse)))

    assert result.stderr == "mgpu: [bold]No\ufffd[2J: \ufffd\ufffd\n"


@pytest.mark.parametrize(
    ("status", "text"), [(200, "<html>"), (200, "[]"), (200, "{}"), (502, "<html>"), (404, "{}")]
)
async def test_somebody_else_at_the_address_is_exit_code_3(
    mgpu: Mgpu, start_broker: StartBroker, status: int, text: str
) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=text, status=status)

    result = await mgpu("status", "--url", _url(await start_broker(answer)))

    assert result.exit_code == 3
    assert "is no mgpu broker" in result.stderr


async def test_a_redirect_is_not_followed(mgpu: Mgpu, start_broker: StartBroker) -> None:
    asked: list[str] = []

    async def redirect(request: web.Request) -> web.Response:
        asked.append(request.path)
        raise web.HTTPFound("/elsewhere")

    result = await mgpu("status", "--url", _url(await start_broker(redirect)))

    assert result.exit_code == 3
    assert asked == ["/api/status"]


async def test_a_broker_that_breaks_off_is_exit_code_3(mgpu: Mgpu) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        result = await mgpu("status", "--url", f"http://127.0.0.1:{port}")

    assert result.exit_code == 3
    assert "Server disconnected" in result.stderr


async def test_a_wait_has_an_end(mgpu: Mgpu, start_broker: StartBroker) -> None:
    over = asyncio.Event()

    async def never(request: web.Request) -> web.Response:
        await over.wait()
        return web.Response()

    url = _url(await start_broker(never))
    result = await mgpu("load", "tts", "--url", url, "--wait", "0.1")
    over.set()

    assert result.exit_code == 3
    assert result.stderr == f"mgpu: {url} did not answer in time\n"


@pytest.mark.parametrize("head", ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\n\r\n{"])
async def test_a_wait_for_one_that_goes_on_answering_has_an_end(mgpu: Mgpu, head: str) -> None:
    async with serving(BadServer(head.encode(), b" ")) as server:
        result = await mgpu("load", "tts", "--url", server.url, "--wait", "0.3")

    assert result.exit_code == 3
    assert result.stderr == f"mgpu: {server.url} did not answer in time\n"


async def test_a_request_that_is_cancelled_is_broken_off() -> None:
    async with serving(BadServer()) as server, asyncio.timeout(10):
        asking = asyncio.create_task(Client.at(server.url).ask("GET", "/", timeout_s=900))
        await server.asked.wait()
        asking.cancel()
        await server.left.wait()
        with pytest.raises(asyncio.CancelledError):
            await asking


async def test_the_key_of_the_environment_is_sent(
    mgpu: Mgpu, start_broker: StartBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.json_response({})

    url = _url(await start_broker(answer))
    await mgpu("load", "tts", "--url", url)
    monkeypatch.setenv("MGPU_API_KEY", "s3cret")
    await mgpu("load", "tts", "--url", url)

    assert seen == [None, "Bearer s3cret"]


async def test_where_a_key_is_needed_it_is_said_where_it_goes(
    mgpu: Mgpu, start_broker: StartBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(_request: web.Request) -> web.Response:
        problem = {"title": "Unauthenticated", "detail": "This needs an API key."}
        return web.json_response(problem, status=401, content_type="application/problem+json")

    url = _url(await start_broker(answer))
    without = await mgpu("status", "--url", url)
    monkeypatch.setenv("MGPU_API_KEY", "s3cret")
    wrong = await mgpu("status", "--url", url)

    said = "mgpu: Unauthenticated: This needs an API key."
    assert without.stderr == f"{said} Put it into MGPU_API_KEY.\n"
    assert wrong.stderr == f"{said} MGPU_API_KEY holds another.\n"
    assert (without.exit_code, wrong.exit_code) == (1, 1)


async def test_a_key_that_cannot_be_sent_is_bad_usage_and_is_not_shown(
    mgpu: Mgpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MGPU_API_KEY", "s3cret\nInjected: yes")

    result = await mgpu("status")

    assert result.exit_code == 2
    assert "MGPU_API_KEY: a key is printable ASCII" in result.stderr
    assert "s3cret" not in result.output


async def test_the_address_of_the_environment_is_used(
    mgpu: Mgpu, start_broker: StartBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({})

    monkeypatch.setenv("MGPU_URL", _url(await start_broker(answer)))

    assert (await mgpu("load", "tts")).exit_code == 0


@pytest.mark.parametrize("slashes", ["", "//"])
async def test_a_unix_socket_is_an_address(mgpu: Mgpu, tmp_path: Path, slashes: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({})

    application = web.Application()
    application.router.add_post("/api/consumers/tts/load", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "s")).start()

    result = await mgpu("load", "tts", "--url", f"unix:{slashes}{tmp_path}/s")
    await runner.cleanup()

    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "url", ["", "7070", "127.0.0.1:7070", "ftp://h", "http://", "http://u:s3cret@h", "http://h:x"]
)
async def test_what_is_no_address_is_bad_usage(mgpu: Mgpu, url: str) -> None:
    result = await mgpu("status", "--url", url)

    assert result.exit_code == 2
    assert "the broker's address must be http://HOST:PORT or unix:/PATH" in result.stderr
    assert "s3cret" not in result.output


async def test_an_answer_without_end_is_given_up(
    mgpu: Mgpu, start_broker: StartBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mgpu.cli.client.MAX_ANSWER_BYTES", 1000)

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=json.dumps("x" * 1000))

    result = await mgpu("status", "--url", _url(await start_broker(answer)))

    assert result.exit_code == 3
    assert "the answer is over 1000 bytes" in result.stderr
