from __future__ import annotations

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from mgpu.config.model import ConsumerConfig
from mgpu.consumers import models
from mgpu.consumers.models import served_models
from mgpu.consumers.probe import MAX_BODY_BYTES
from tests.support.servers import BadServer, free_port, serving


async def told(answer: web.Response, **where: str) -> tuple[str, ...] | None:
    """What is made of an answer."""

    async def handle(request: web.Request) -> web.Response:
        assert request.path == where.get("path", "/v1/models")
        return answer

    app = web.Application()
    app.router.add_get("/{path:.*}", handle)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        url = str(server.make_url("")).rstrip("/")
        config = ConsumerConfig.model_validate({"url": url, "models": where})
        return await served_models(config, session)


async def test_names_come_from_openais_shape_by_default() -> None:
    answer = web.json_response({"data": [{"id": "a"}, {"id": "b"}, {"id": "a"}, {"id": 5}, {}]})

    assert await told(answer) == ("a", "b")


async def test_another_path_and_another_shape_are_configured() -> None:
    answer = web.json_response({"models": [{"name": "x:latest"}]})

    assert await told(answer, path="/api/tags", names="models[].name") == ("x:latest",)


@pytest.mark.parametrize(
    "answer",
    [
        lambda: web.json_response({"data": []}, status=503),
        lambda: web.json_response({"other": 1}),
        lambda: web.json_response({"data": {"id": "x"}}),
        lambda: web.Response(text="no JSON"),
        lambda: web.Response(body=b"[" * 100_000),
        lambda: web.Response(body=b"x" * (MAX_BODY_BYTES + 1)),
        lambda: web.Response(status=302, headers={"Location": "http://127.0.0.1:9/"}),
    ],
)
async def test_an_answer_without_names_is_no_answer(answer: object) -> None:
    assert callable(answer)
    assert await told(answer()) is None


async def test_who_cannot_be_reached_or_hangs_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "PROBE_TIMEOUT_S", 0.1)
    async with aiohttp.ClientSession() as session, serving(BadServer()) as hanging:
        for url in (f"http://127.0.0.1:{free_port()}", hanging.url):
            config = ConsumerConfig.model_validate({"url": url, "models": {}})
            assert await served_models(config, session) is None


async def test_a_consumer_without_the_key_is_not_asked() -> None:
    async with aiohttp.ClientSession() as session:
        assert await served_models(ConsumerConfig(url="http://127.0.0.1:9"), session) is None
