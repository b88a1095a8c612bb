from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

Mgpu = Callable[..., Awaitable[Any]]
Answer = Callable[[web.Request], Awaitable[web.Response]]
StartBroker = Callable[[Answer], Awaitable[TestServer]]


@pytest.mark.parametrize(
    ("verb", "paused", "line"),
    [
        ("pause", True, "Paused: nothing computes, and the VRAM is yours. To go on: mgpu resume\n"),
        ("pause", False, "The pause was ended meanwhile: the broker serves jobs\n"),
        ("resume", False, "Resumed: the queue is served again. mgpu status shows it\n"),
    ],
)
async def test_what_happened_and_what_is_next_is_one_line(
    mgpu: Mgpu, start_broker: StartBroker, verb: str, *, paused: bool, line: str
) -> None:
    asked: list[tuple[str, str]] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append((request.method, request.raw_path))
        return web.json_response({"paused": paused})

    server = await start_broker(answer)
    result = await mgpu(verb, "--url", str(server.make_url("")))

    assert (result.exit_code, result.stdout, result.stderr) == (0, line, "")
    assert asked == [("POST", f"/api/{verb}")]


async def test_who_stays_in_memory_is_named(mgpu: Mgpu, start_broker: StartBroker) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.json_response({"paused": True, "resident": ["whisper", "ollama"]})

    server = await start_broker(answer)
    result = await mgpu("pause", "--url", str(server.make_url("")))

    assert result.stdout == (
        "Still in VRAM, as it could not be unloaded: whisper, ollama\n"
        "Paused: nothing computes, and the rest of the VRAM is yours. To go on: mgpu resume\n"
    )


@pytest.mark.parametrize("verb", ["pause", "resume"])
async def test_a_broker_that_says_no_is_quoted(
    mgpu: Mgpu, start_broker: StartBroker, verb: str
) -> None:
    async def answer(_request: web.Request) -> web.Response:
        problem = {"title": "Unload failed", "detail": "paused, but tts may hold memory still"}
        return web.json_response(problem, status=502, content_type="application/problem+json")

    server = await start_broker(answer)
    result = await mgpu(verb, "--url", str(server.make_url("")))

    assert result.exit_code == 1
    assert "tts may hold memory still" in result.stderr
