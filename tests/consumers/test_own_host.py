"""Nothing in a preset, nor in an answer, makes the broker ask another host than the consumer's."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mgpu.config.load import load
from mgpu.config.model import ConsumerConfig, RequestConfig
from mgpu.config.problems import InvalidConfig
from mgpu.consumers.http import HttpController
from mgpu.consumers.wire import url_of
from mgpu.errors import LoadFailed, UnloadFailed
from mgpu.ports import Placement

Serve = Callable[[web.Application], Awaitable[TestServer]]

SECTIONS: dict[str, dict[str, Any]] = {
    "load": {},
    "unload": {},
    "health": {},
    "resident": {"when": "@"},
    "busy": {"when": "@"},
}


def in_every_request(path: str) -> Iterator[dict[str, Any]]:
    for section, others in SECTIONS.items():
        yield {section: {"path": path, **others}}
    yield {"unload": {"path": "/u", "for_each": {"path": path, "items": "@"}}}


@pytest.mark.parametrize(
    "path",
    [
        "http://evil.example/x",
        "https://evil.example",
        "//evil.example/x",
        "///evil.example/x",
        "/\\evil.example/x",
        "\\\\evil.example\\x",
        "@evil.example/x",
        ":80@evil.example/",
        ".evil.example/",
        "evil.example",
        "/x#@evil.example",
        "/a b",
        "/a\r\nHost: evil.example",
        "/a\tb",
        "/é",
        "",
    ],
)
def test_a_preset_with_more_than_a_path_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    preset = tmp_path / "presets" / "evil.yaml"
    preset.parent.mkdir()
    broker = tmp_path / "broker.yaml"
    broker.write_text("consumers: {a: {url: 'http://127.0.0.1:1', preset: evil}}")
    for consumer in in_every_request(path):
        preset.write_text(yaml.safe_dump({"service": "x", "consumer": consumer}))
        with pytest.raises(InvalidConfig, match=r"evil\.yaml"):
            load(broker)


@given(
    path=st.text(st.sampled_from("/\\@:.?#%[]abevil0123456789") | st.characters(), max_size=40),
    origin=st.sampled_from(["http://127.0.0.1:8001", "https://gpu.lan", "http://[::1]:1"]),
    port=st.none() | st.integers(1, 65535),
)
def test_a_path_that_is_accepted_stays_at_the_consumer(
    path: str, origin: str, port: int | None
) -> None:
    try:
        request = RequestConfig(path=path, port=port)
    except ValidationError:
        return
    url = url_of(origin, request.path, request.port)
    own = url_of(origin, "/")
    assert (url.scheme, url.host) == (own.scheme, own.host)
    assert url.port == (port or own.port)
    assert (url.user, url.password) == (None, None)


async def test_no_redirect_is_followed_by_anything(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    visits: list[str] = []

    async def visited(request: web.Request) -> web.Response:
        visits.append(request.path)
        return web.json_response([])

    elsewhere = web.Application()
    elsewhere.router.add_route("*", "/{path:.*}", visited)
    other = await aiohttp_server(elsewhere)

    async def redirect(request: web.Request) -> web.Response:
        statuses = {"GET": 302, "POST": 307}
        headers = {"Location": str(other.make_url("/trap"))}
        return web.Response(status=statuses[request.method], headers=headers)

    here = web.Application()
    here.router.add_route("*", "/{path:.*}", redirect)
    server = await aiohttp_server(here)
    for consumer in in_every_request("/x"):
        config = ConsumerConfig.model_validate({"url": str(server.make_url("")), **consumer})
        controller = HttpController("x", config, session)
        await controller.probe()
        with suppress(LoadFailed):
            await controller.load(Placement())
        with suppress(UnloadFailed):
            await controller.unload()

    assert visits == []


@pytest.mark.parametrize(
    "item",
    [
        "http://evil.example/x",
        "//evil.example",
        "../../admin/shutdown",
        "..",
        ".",
        "",
        "/etc",
        "a//b",
        "a\r\nHost: evil.example",
        "x" * 1025,
        "\x00",
    ],
)
async def test_a_name_that_would_lead_elsewhere_is_refused_and_nothing_is_sent(
    session: aiohttp.ClientSession, aiohttp_server: Serve, item: str
) -> None:
    server, seen = await lying(aiohttp_server, ["good", item])
    config = per_item(server, path="/api/ps/{item}")
    with pytest.raises(UnloadFailed, match="GET /list: "):
        await HttpController("x", config, session).unload()

    assert seen == []


@pytest.mark.parametrize(
    ("item", "path"),
    [
        ("org/model:7b", "/api/ps/org/model:7b"),
        ("a?b=c", "/api/ps/a%3Fb=c"),
        ("a#b", "/api/ps/a%23b"),
        ("a%2e%2e%2fb", "/api/ps/a%252e%252e%252fb"),
        ("@evil.example", "/api/ps/@evil.example"),
        ("a\\..\\b", "/api/ps/a%5C..%5Cb"),
        ("é", "/api/ps/%C3%A9"),
        (5, "/api/ps/5"),
    ],
)
async def test_any_other_name_arrives_as_one_part_of_the_path(
    session: aiohttp.ClientSession, aiohttp_server: Serve, item: str | int, path: str
) -> None:
    server, seen = await lying(aiohttp_server, [item])
    await HttpController("x", per_item(server, path="/api/ps/{item}"), session).unload()

    assert seen == [path]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"a": 1}, "gives no list of names"),
        ("text", "gives no list of names"),
        ([{"name": "a"}], "gives no list of names"),
        ([True], "gives no list of names"),
        (list(range(257)), "gives more than 256 names"),
    ],
)
async def test_an_answer_that_names_nothing_sensible_fails_the_unload(
    session: aiohttp.ClientSession, aiohttp_server: Serve, answer: Any, why: str
) -> None:
    server, seen = await lying(aiohttp_server, answer)
    with pytest.raises(UnloadFailed, match=why):
        await HttpController("x", per_item(server, path="/{item}"), session).unload()

    assert seen == []


async def test_nothing_to_unload_is_no_call(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    for names in ("[]", "null"):
        server, seen = await lying(aiohttp_server, json.loads(names))
        await HttpController("x", per_item(server, path="/{item}"), session).unload()
        assert seen == []


async def test_a_list_that_is_not_given_fails_the_unload(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    server = await aiohttp_server(web.Application())
    with pytest.raises(UnloadFailed, match="GET /list answered 404"):
        await HttpController("x", per_item(server, path="/{item}"), session).unload()


async def test_a_name_named_twice_is_asked_for_once(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    server, seen = await lying(aiohttp_server, ["a", "b", "a"])
    await HttpController("x", per_item(server, path="/{item}"), session).unload()

    assert seen == ["/a", "/b"]


async def lying(aiohttp_server: Serve, answer: Any) -> tuple[TestServer, list[str]]:
    """A service that lists what it likes, and the paths of what it is then asked for."""
    seen: list[str] = []

    async def names(_: web.Request) -> web.Response:
        return web.json_response(answer)

    async def unload(request: web.Request) -> web.Response:
        seen.append(request.raw_path)
        return web.Response()

    app = web.Application()
    app.router.add_get("/list", names)
    app.router.add_delete("/{path:.*}", unload)
    return await aiohttp_server(app), seen


def per_item(server: TestServer, path: str) -> ConsumerConfig:
    unload = {"method": "DELETE", "path": path, "for_each": {"path": "/list", "items": "@"}}
    return ConsumerConfig.model_validate({"url": str(server.make_url("")), "unload": unload})
