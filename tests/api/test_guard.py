from __future__ import annotations

import hmac
from typing import Any

import pytest
from aiohttp import web

from mgpu.api import guard
from tests.api.conftest import Sites

PATHS = [
    "/",
    "/healthz",
    "/readyz",
    "/metrics",
    "/openapi.json",
    "/api/status",
    "/api/consumers/tts/load",
    "/api/consumers/tts/unload",
    "/consumers/tts/x",
    "/consumers/tts",
    "/v1/tts",
    "/v1/models",
    "/v1/chat/completions",
    "/nowhere",
]
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
ADMIN_PATHS = ["/api/status", "/api/consumers/tts/load", "/api/consumers/tts/unload"]
KEY = "correct-horse"


async def never(_request: web.Request) -> web.StreamResponse:
    raise AssertionError("the consumer must not be asked")


def request_of(path: str, *lines: str, method: str = "GET", version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/{version}", *lines, "", ""]).encode("latin-1")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:7070",
        "localhost.",
        "127.0.0.1.",
        "127.0.0.2",
        "localhost.evil.example",
        "xlocalhost",
        "[::2]",
        "::1",
        "a/b@c",
        "evil.example@localhost",
        "localhost:x",
        "localhost:",
        "localhost, localhost",
        "",
        " ",
        "[::1",
        "2130706433",
    ],
)
async def test_a_foreign_or_odd_host_is_refused_on_every_route(
    sites: Sites, path: str, host: str
) -> None:
    site = await sites.broker(await sites.upstream(never))
    client = await site.raw()

    await client.send(request_of(path, f"Host: {host}"))

    status, problem = await client.problem()
    assert status in {400, 421}
    assert problem["type"] in {"urn:mgpu:bad-request", "urn:mgpu:wrong-host"}
    assert not site.broker.asked


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "request_text",
    [
        "GET {path} HTTP/1.1\r\n\r\n",
        "GET {path} HTTP/1.0\r\n\r\n",
        "GET {path}\r\n\r\n",
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        "GET {path} HTTP/1.0\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    ],
)
async def test_a_missing_or_second_host_is_refused_on_every_route(
    sites: Sites, path: str, request_text: str
) -> None:
    site = await sites.broker(await sites.upstream(never))
    client = await site.raw()

    await client.send(request_text.format(path=path).encode())

    status, _ = await client.problem()
    assert status in {400, 421}
    assert not site.broker.asked


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "localhost:1", "127.0.0.1:99", "[::1]", "[::1]:7070"]
)
async def test_an_allowed_host_is_allowed_on_any_port(sites: Sites, host: str) -> None:
    site = await sites.broker()

    async with site.client.get(site.url("/healthz"), headers={"Host": host}) as response:
        assert response.status == 200


@pytest.mark.parametrize("allowed", ["::1", "[::1]", "[::1]:7070"])
async def test_an_ipv6_address_may_be_configured_with_or_without_brackets(
    sites: Sites, allowed: str
) -> None:
    site = await sites.broker(server={"allowed_hosts": [allowed]})

    async with site.client.get(site.url("/healthz"), headers={"Host": "[::1]:5"}) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    "target",
    [
        "http://evil.example/api/status",
        "http://localhost/api/status",
        "http://localhost@evil.example/api/status",
        "//evil.example/api/status",
        "*",
    ],
)
async def test_a_target_that_names_another_server_is_refused(sites: Sites, target: str) -> None:
    site = await sites.broker(await sites.upstream(never))
    client = await site.raw()

    await client.send(request_of(target, "Host: localhost", method="OPTIONS"))

    status, _ = await client.problem()
    assert status == 400


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PROPFIND", "LOCK", "PURGE"])
async def test_only_listed_methods_are_served(sites: Sites, path: str, method: str) -> None:
    site = await sites.broker(await sites.upstream(never))
    client = await site.raw()

    await client.send(request_of(path, "Host: localhost", method=method))

    status, _ = await client.problem()
    assert status in {400, 405}
    assert not site.broker.asked


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 3", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: gzip, chunked",),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: gzip",),
        ("Transfer-Encoding: chunked, identity",),
        ("Transfer-Encoding: xchunked",),
        ("Content-Length: 3", "Content-Length: 4"),
        ("Content-Length: +3",),
        ("Content-Length: -3",),
        ("Content-Length: 3, 3",),
        ("X: a", " folded"),
        ("X : a",),
        ("X\x00: a",),
        ("X: a\x00b",),
    ],
)
async def test_a_request_that_can_be_framed_in_two_ways_is_refused(
    sites: Sites, lines: tuple[str, ...]
) -> None:
    site = await sites.broker(await sites.upstream(never))
    client = await site.raw()

    await client.send(request_of("/v1/tts", "Host: localhost", *lines, method="POST"))

    status, _ = await client.problem()
    assert status == 400
    assert not site.broker.asked


async def test_an_encoding_in_http_1_0_is_refused(sites: Sites) -> None:
    site = await sites.broker(await sites.upstream(never))
    client = await site.raw()

    await client.send(
        request_of(
            "/v1/tts", "Host: localhost", "Transfer-Encoding: chunked", method="POST", version="1.0"
        )
    )

    status, _ = await client.problem()
    assert status == 400


@pytest.mark.parametrize("version", ["0.9", "1.2", "2.0", "3.0"])
async def test_other_versions_of_http_are_refused(sites: Sites, version: str) -> None:
    site = await sites.broker(await sites.upstream(never))
    client = await site.raw()

    await client.send(request_of("/healthz", "Host: localhost", version=version))

    status, _ = await client.problem()
    assert status == 400


@pytest.mark.parametrize("lines", ["GET /healthz HTTP/1.1\nHost: localhost\n\n"])
async def test_a_bare_line_feed_is_refused(sites: Sites, lines: str) -> None:
    site = await sites.broker()
    client = await site.raw()

    await client.send(lines.encode())

    status, _ = await client.problem()
    assert status == 400


@pytest.mark.parametrize(
    "path",
    [
        "/v1/../api/status",
        "/v1/tts/%2e%2e/x",
        "/v1/tts/..%2fx",
        "/v1%2ftts",
        "//api/status",
        "/consumers/tts//x",
        "/consumers/tts/a%2F..%2Fb",
        "/consumers%2Ftts/a",
        "/consumers/tts/%00",
        "/consumers/tts/a%5Cb",
    ],
)
async def test_an_ambiguous_path_is_refused_before_anything_is_asked(
    sites: Sites, path: str
) -> None:
    site = await sites.broker(await sites.upstream(never))
    client = await site.raw()

    await client.send(request_of(path, "Host: localhost"))

    status, _ = await client.problem()
    assert status == 400
    assert not site.broker.asked


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", [*ADMIN_PATHS, "/v1/tts", "/consumers/tts/x"])
@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://localhost:1", "https://localhost.evil.example", "x"],
)
async def test_a_foreign_origin_is_refused_by_every_method(
    sites: Sites, path: str, method: str, origin: str
) -> None:
    site = await sites.broker(await sites.upstream(never))

    async with site.client.request(method, site.url(path), headers={"Origin": origin}) as response:
        assert response.status == 403
    assert not site.broker.asked
    assert not site.broker.actions


async def test_also_by_a_method_that_nobody_may_use(sites: Sites) -> None:
    site = await sites.broker(await sites.upstream(never))
    client = await site.raw()

    await client.send(
        request_of("/api/pause", "Host: localhost", "Origin: http://evil.example", method="TRACE")
    )

    status, _ = await client.problem()
    assert status == 403


@pytest.mark.parametrize("site_of_page", ["cross-site", "same-site", "CROSS-SITE", "other"])
async def test_a_page_of_another_site_is_refused_without_an_origin_too(
    sites: Sites, site_of_page: str
) -> None:
    site = await sites.broker(await sites.upstream(never))

    async with site.client.get(
        site.url("/v1/tts"), headers={"Sec-Fetch-Site": site_of_page}
    ) as response:
        assert response.status == 403


@pytest.mark.parametrize("site_of_page", ["same-origin", "none"])
async def test_the_brokers_own_page_and_the_address_bar_are_let_in(
    sites: Sites, site_of_page: str
) -> None:
    site = await sites.broker()
    headers = {"Sec-Fetch-Site": site_of_page, "Origin": f"http://127.0.0.1:{site.port}"}

    async with site.client.get(site.url("/api/status"), headers=headers) as response:
        assert response.status == 200
        assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://localhost", "localhost"),
        ("http://localhost", "localhost:80"),
        ("https://localhost:443", "localhost"),
        ("http://LOCALHOST:7070", "localhost:7070"),
    ],
)
async def test_the_same_origin_is_recognised(sites: Sites, origin: str, host: str) -> None:
    site = await sites.broker()

    async with site.client.get(
        site.url("/api/status"), headers={"Origin": origin, "Host": host}
    ) as response:
        assert response.status == 200


async def test_a_page_of_an_allowed_origin_may_ask_and_read(sites: Sites) -> None:
    origin = "https://ui.example"
    site = await sites.broker(server={"allowed_origins": [origin]})
    headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}

    async with site.client.get(site.url("/api/status"), headers=headers) as response:
        assert response.status == 200
        assert response.headers["Access-Control-Allow-Origin"] == origin
        assert "Origin" in response.headers.getall("Vary")
        assert "X-MGPU-Job" in response.headers["Access-Control-Expose-Headers"]


async def test_an_allowed_page_may_read_its_errors(sites: Sites) -> None:
    origin = "https://ui.example"
    site = await sites.broker(server={"allowed_origins": [origin]})

    async with site.client.get(site.url("/nowhere"), headers={"Origin": origin}) as response:
        assert response.status == 404
        assert response.headers["Access-Control-Allow-Origin"] == origin


async def test_a_preflight_of_an_allowed_page_needs_no_key(sites: Sites) -> None:
    origin = "https://ui.example"
    site = await sites.broker(server={"allowed_origins": [origin]}, api_keys=(KEY,))
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }

    async with site.client.options(site.url("/v1/tts"), headers=headers) as response:
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Origin"] == origin
        assert response.headers["Access-Control-Allow-Headers"] == "authorization"
        assert "POST" in response.headers["Access-Control-Allow-Methods"]
    assert not site.broker.asked


async def test_two_origins_are_refused(sites: Sites) -> None:
    site = await sites.broker(server={"allowed_origins": ["https://ui.example"]})
    client = await site.raw()

    await client.send(
        request_of(
            "/api/status",
            "Host: localhost",
            "Origin: https://ui.example",
            "Origin: https://evil.example",
        )
    )

    status, _ = await client.problem()
    assert status == 400


@pytest.mark.parametrize("path", [path for path in PATHS if path not in guard.OPEN_PATHS])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer "},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"X-Api-Key": KEY},
        {"Cookie": f"key={KEY}"},
    ],
)
async def test_nothing_but_health_answers_without_a_key(
    sites: Sites, path: str, headers: dict[str, str]
) -> None:
    site = await sites.broker(await sites.upstream(never), api_keys=("other", KEY))

    async with site.client.get(site.url(f"{path}"), headers=headers) as response:
        assert response.status == 401
        assert response.headers["WWW-Authenticate"].startswith("Bearer")
    assert not site.broker.asked


@pytest.mark.parametrize("path", ["/healthz?x", "/healthz/", "/%68ealthz", "/healthz/../metrics"])
async def test_what_only_resembles_the_open_paths_is_not_open(sites: Sites, path: str) -> None:
    site = await sites.broker(api_keys=(KEY,))
    client = await site.raw()

    await client.send(request_of(path, "Host: localhost"))

    status, _ = await client.problem()
    assert status == 401


@pytest.mark.parametrize("path", sorted(guard.OPEN_PATHS))
async def test_health_answers_without_a_key(sites: Sites, path: str) -> None:
    site = await sites.broker(api_keys=(KEY,))

    async with site.client.get(site.url(path)) as response:
        assert response.status == 200


@pytest.mark.parametrize("key", ["first", KEY, "last"])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
async def test_every_key_opens(sites: Sites, key: str, scheme: str) -> None:
    site = await sites.broker(api_keys=("first", KEY, "last"))

    async with site.client.get(
        site.url("/api/status"), headers={"Authorization": f"{scheme} {key}"}
    ) as response:
        assert response.status == 200


async def test_two_keys_in_one_request_are_none(sites: Sites) -> None:
    site = await sites.broker(api_keys=(KEY,))
    client = await site.raw()
    line = f"Authorization: Bearer {KEY}"

    await client.send(request_of("/api/status", "Host: localhost", line, line))

    status, _ = await client.problem()
    assert status in {400, 401}


def test_every_key_is_compared_in_constant_time_whichever_matches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[tuple[Any, Any]] = []
    compare = hmac.compare_digest

    def recorded(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", recorded)
    guard.Keys(["a", "bb", "ccc"]).check(["Bearer a"])

    assert len(compared) == 3
    assert {len(value) for pair in compared for value in pair} == {32}


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 401), ({"Authorization": f"Bearer {KEY}", "Origin": "http://evil.example"}, 403)],
)
async def test_a_websocket_without_key_or_from_a_foreign_page_never_reaches_the_consumer(
    sites: Sites, headers: dict[str, str], status: int
) -> None:
    site = await sites.broker(await sites.upstream(never), api_keys=(KEY,))
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }

    async with site.client.get(
        site.url("/consumers/tts/ws"), headers={**upgrade, **headers}
    ) as response:
        assert response.status == status
    assert not site.broker.asked
