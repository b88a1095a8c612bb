from __future__ import annotations

import pytest
from aiohttp import web
from yarl import URL

from tests.api.conftest import Sites


async def echo_target(request: web.Request) -> web.StreamResponse:
    return web.Response(text=f"{request.method} {request.raw_path}")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_any_method_on_a_configured_path_is_a_job(sites: Sites, method: str) -> None:
    site = await sites.broker(await sites.upstream(echo_target))

    async with site.client.request(method, site.url("/v1/tts/voice?x=1")) as response:
        assert await response.text() == f"{method} /tts/voice?x=1"
    assert site.broker.outcomes == {"job-1": "done"}


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/consumers/tts/deep/path?x=1", "/deep/path?x=1"),
        ("/consumers/tts/", "/"),
        ("/consumers/tts", "/"),
        ("/consumers/tts?x", "/?x"),
        ("/consumers/tts/consumers/tts", "/consumers/tts"),
        ("/consumers/tts/userdata/a%2Fb%2fc.json", "/userdata/a%2Fb%2fc.json"),
    ],
)
async def test_a_consumers_own_paths_are_jobs(sites: Sites, path: str, target: str) -> None:
    site = await sites.broker(await sites.upstream(echo_target))

    async with site.client.get(URL(site.url(path), encoded=True)) as response:
        assert await response.text() == f"GET {target}"
        assert response.headers["X-MGPU-Consumer"] == "tts"
    assert site.broker.outcomes == {"job-1": "done"}


async def test_what_is_no_activity_passes_while_the_gpu_is_held(sites: Sites) -> None:
    site = await sites.broker(
        await sites.upstream(echo_target),
        consumer={"not_activity": ["GET /queue", "GET /history/*"]},
    )
    await site.broker.hold()

    for path in ("/queue?full=1", "/history/1/2", "/%71ueue"):
        async with site.client.get(site.url(f"/consumers/tts{path}")) as response:
            assert response.status == 200
            assert response.headers["X-MGPU-Consumer"] == "tts"
            assert "X-MGPU-Job" not in response.headers
    assert not site.broker.asked


@pytest.mark.parametrize(
    "request_line", ["POST /queue", "GET /queue/", "GET /QUEUE", "HEAD /queue", "GET /"]
)
async def test_what_only_resembles_it_is_a_job(sites: Sites, request_line: str) -> None:
    method, path = request_line.split()
    site = await sites.broker(
        await sites.upstream(echo_target), consumer={"not_activity": ["GET /queue"]}
    )

    async with site.client.request(method, site.url(f"/consumers/tts{path}")) as response:
        assert response.status == 200
    assert site.broker.outcomes == {"job-1": "done"}


async def test_an_unknown_consumer_is_named_with_its_nearest(sites: Sites) -> None:
    site = await sites.broker()

    async with site.client.get(site.url("/consumers/ttss/x")) as response:
        assert response.status == 404
        document = await response.json(content_type="application/problem+json")
    assert document["type"] == "urn:mgpu:unknown-consumer"
    assert "Did you mean 'tts'?" in document["detail"]


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("/v1/tt", "/v1/tts"),
        ("/api/statu", "/api/status"),
        ("/health", "/healthz"),
        ("/API/status", "/api/status"),
    ],
)
async def test_an_unknown_path_is_answered_with_its_nearest(
    sites: Sites, path: str, near: str
) -> None:
    site = await sites.broker()

    async with site.client.get(site.url(path)) as response:
        assert response.status == 404
        document = await response.json(content_type="application/problem+json")
    assert document["type"] == "urn:mgpu:unknown-route"
    assert f"Did you mean {near!r}?" in document["detail"]


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/api/consumers/tts/load", "POST"),
        ("DELETE", "/healthz", "GET,HEAD"),
        ("POST", "/metrics", "GET,HEAD"),
    ],
)
async def test_a_known_path_by_the_wrong_method_is_a_405(
    sites: Sites, method: str, path: str, allow: str
) -> None:
    site = await sites.broker()

    async with site.client.request(method, site.url(path)) as response:
        assert response.status == 405
        assert response.headers["Allow"] == allow


async def test_a_path_that_is_no_text_is_unknown_all_the_same(sites: Sites) -> None:
    site = await sites.broker()
    client = await site.raw()

    await client.send(b"GET /%ff%fe HTTP/1.1\r\nHost: localhost\r\n\r\n")

    status, _ = await client.problem()
    assert status == 404


DENIED = ["DELETE /api/delete", "POST /v1/server-*", "* /stop"]


@pytest.mark.parametrize(
    "request_line",
    [
        "DELETE /api/delete",
        "DELETE /api/delete?name=m",
        "DELETE /api/delete/",
        "DELETE /API/Delete",
        "DELETE /api/%64elete",
        "POST /v1/server-kill",
        "POST /v1/server-kill/now",
        "GET /stop",
        "PUT /stop",
    ],
)
async def test_what_is_denied_never_reaches_the_consumer(sites: Sites, request_line: str) -> None:
    reached: list[str] = []

    async def note(request: web.BaseRequest) -> web.Response:
        reached.append(request.path)
        return web.Response()

    method, path = request_line.split()
    site = await sites.broker(
        await sites.upstream(note),
        consumer={"deny": DENIED, "not_activity": ["GET /*"]},
        routes={"/raw": {"consumer": "tts", "path": "/"}},
    )

    for prefix in ("/consumers/tts", "/raw"):
        url = URL(site.url(prefix + path), encoded=True)
        async with site.client.request(method, url) as response:
            assert response.status == 403
            document = await response.json(content_type="application/problem+json")
            assert document["type"] == "urn:mgpu:forbidden"
    assert (reached, site.broker.outcomes) == ([], {})


@pytest.mark.parametrize("request_line", ["GET /api/delete", "DELETE /api/deleted", "POST /v1/x"])
async def test_what_only_looks_like_it_passes(sites: Sites, request_line: str) -> None:
    method, path = request_line.split()
    site = await sites.broker(await sites.upstream(echo_target), consumer={"deny": DENIED})

    async with site.client.request(method, site.url(f"/consumers/tts{path}")) as response:
        assert response.status == 200
