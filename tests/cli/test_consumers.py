from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

Mgpu = Callable[..., Awaitable[Any]]
Answer = Callable[[web.Request], Awaitable[web.Response]]
StartBroker = Callable[[Answer], Awaitable[TestServer]]


@pytest.mark.parametrize(
    ("verb", "line"),
    [
        ("load", "tts is resident. To free its VRAM again: mgpu unload tts\n"),
        (
            "unload",
            "tts is absent. Its next job loads it again; mgpu status shows the free VRAM\n",
        ),
        (
            "pin",
            "tts is pinned: never evicted, loaded when absent. To end it: mgpu unpin tts\n",
        ),
        (
            "unpin",
            "tts is not pinned. It stays until its room is needed, or mgpu unload tts\n",
        ),
        ("restart", "tts was restarted. mgpu status shows how it is\n"),
    ],
)
@pytest.mark.parametrize("body", ["", "{}"])
async def test_what_happened_and_what_is_next_is_one_line(
    mgpu: Mgpu, start_broker: StartBroker, verb: str, line: str, body: str
) -> None:
    asked: list[tuple[str, str]] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append((request.method, request.raw_path))
        return web.Response(text=body)

    server = await start_broker(answer)
    result = await mgpu(verb, "tts", "--url", str(server.make_url("")))

    assert result.exit_code == 0
    assert result.stdout == line
    assert result.stderr == ""
    assert asked == [("POST", f"/api/consumers/tts/{verb}")]


@pytest.mark.parametrize(
    ("name", "path"),
    [("a/b", "a%2Fb"), ("..", ".."), ("a b?c#d", "a%20b%3Fc%23d"), ("%2e", "%252e")],
)
async def test_a_name_stays_one_segment_of_the_path(
    mgpu: Mgpu, start_broker: StartBroker, name: str, path: str
) -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.raw_path)
        return web.json_response({})

    server = await start_broker(answer)
    await mgpu("load", name, "--url", str(server.make_url("")))

    assert asked == [f"/api/consumers/{path}/load"]


async def test_a_name_is_required(mgpu: Mgpu) -> None:
    assert (await mgpu("load")).exit_code == 2


async def test_a_load_takes_options(mgpu: Mgpu, start_broker: StartBroker) -> None:
    told: list[Any] = []

    async def answer(request: web.Request) -> web.Response:
        told.append((request.content_type, await request.json()))
        return web.json_response({})

    server = await start_broker(answer)
    settings = ["ctx=32768", "options.voice=de", "options.speed=1.5", "options.x=null", "e==", "n="]
    words = [word for setting in settings for word in ("--set", setting)]
    result = await mgpu("load", "llm", *words, "--url", str(server.make_url("")))

    assert result.exit_code == 0
    options = {"voice": "de", "speed": 1.5, "x": None}
    body = {"ctx": 32768, "options": options, "e": "=", "n": ""}
    assert told == [("application/json", {"body": body})]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["ctx"], "must be KEY=VALUE"),
        (["=1"], "must be KEY=VALUE"),
        (["a..b=1"], "must be KEY=VALUE"),
        (["a=1", "a.b=2"], "a has a value of its own"),
    ],
)
async def test_an_option_that_is_none_is_bad_usage(
    mgpu: Mgpu, settings: list[str], said: str
) -> None:
    words = [word for setting in settings for word in ("--set", setting)]
    result = await mgpu("load", "llm", *words)

    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())
