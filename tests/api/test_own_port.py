"""A consumer's own port: what comes there is meant for the consumer and nobody else."""

from __future__ import annotations

import asyncio
import base64
import json

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from mgpu.api.app import reconfigure
from mgpu.api.deps import DEPS
from tests.api.conftest import Site, Sites

OWN = {"listen": "127.0.0.1:0"}
KEY = "correct-horse"


async def echo(request: web.Request) -> web.StreamResponse:
    return web.json_response(
        {
            "request": f"{request.method} {request.raw_path}",
            "headers": [[name.lower(), value] for name, value in request.headers.items()],
            "body": (await request.read()).decode(),
        }
    )


async def heard(response: aiohttp.ClientResponse) -> dict[str, str]:
    document = await response.json()
    return dict(document["headers"])


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/api/status",
        "/healthz",
        "/consumers/tts/x",
        "/v1/models",
        "/v1/chat/completions?x=1",
        "/metrics/",
        "/api/userdata/workflows%2Fx.json?overwrite=true",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
async def test_every_path_is_the_consumers(sites: Sites, target: str, method: str) -> None:
    site = await sites.broker(await sites.upstream(echo), consumer=OWN)

    async with site.client.request(
        method, URL(site.own_url(target), encoded=True), data=b"x"
    ) as response:
        assert (await response.json())["request"] == f"{method} {target}"
        assert response.headers["X-MGPU-Consumer"] == "tts"
    assert site.broker.outcomes == {"job-1": "done"}


@pytest.mark.parametrize("target", ["/../x", "/a/%2e%2e/x", "/a%2F..%2Fx", "//x", "/a%2F%2Fx"])
async def test_a_path_that_climbs_is_refused_here_too(sites: Sites, target: str) -> None:
    site = await sites.broker(consumer=OWN)
    client = await site.raw(own_port=True)

    await client.send(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    assert (await client.problem())[0] == 400
    assert not site.broker.asked


async def test_what_is_no_activity_needs_no_lock(sites: Sites) -> None:
    site = await sites.broker(
        await sites.upstream(echo), consumer={**OWN, "not_activity": ["GET,HEAD /*"]}
    )
    await site.broker.hold()

    for path in ("/", "/queue", "/api/userdata/a%2Fb"):
        async with site.client.get(URL(site.own_url(path), encoded=True)) as response:
            assert response.status == 200
    assert not site.broker.asked
    asking = asyncio.create_task(site.client.post(site.own_url("/prompt")).__aenter__())
    await site.broker.until(lambda broker: broker.waiting == ["job-1"])
    site.broker.let_go()
    async with await asking as response:
        assert response.status == 200


async def test_the_consumer_sees_its_own_host_and_how_it_was_reached(sites: Sites) -> None:
    url = await sites.upstream(echo)
    site = await sites.broker(url, consumer=OWN)
    own = f"127.0.0.1:{site.own_port}"

    async with site.client.get(
        site.own_url("/"), headers={"Origin": f"http://{own}", "Sec-Fetch-Site": "same-origin"}
    ) as response:
        seen = await heard(response)
    assert seen["host"] == url.removeprefix("http://")
    assert not {"origin", "sec-fetch-site"} & seen.keys()
    assert seen["x-forwarded-host"] == own
    assert seen["x-forwarded-proto"] == "http"
    assert seen["x-forwarded-for"] == "127.0.0.1"

    async with site.client.get(
        site.own_url("/"), headers={"X-Forwarded-Proto": "https"}
    ) as response:
        assert (await heard(response))["x-forwarded-proto"] == "https"
    async with site.client.get(site.url("/consumers/tts/")) as response:
        assert "x-forwarded-host" not in await heard(response)


async def test_what_is_to_be_dropped_does_not_reach_the_consumer(sites: Sites) -> None:
    site = await sites.broker(
        await sites.upstream(echo), consumer={**OWN, "drop_headers": ["X-Conversation-Id"]}
    )
    for url in (site.own_url("/v1/chat"), site.url("/consumers/tts/v1/chat"), site.url("/v1/tts")):
        sent = {"x-conversation-ID": "7", "X-Other": "8"}
        async with site.client.post(url, headers=sent) as response:
            seen = await heard(response)
        assert (seen.get("x-conversation-id"), seen["x-other"]) == (None, "8")


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["Host: evil.example"], 421),
        (["Host: localhost", "Origin: http://evil.example"], 403),
        (["Host: localhost", "Sec-Fetch-Site: cross-site"], 403),
        (["Host: localhost", "Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: no-cors"], 403),
        (
            [
                "Host: localhost",
                "Sec-Fetch-Site: cross-site",
                "Sec-Fetch-Mode: navigate",
                "Sec-Fetch-Dest: iframe",
            ],
            403,
        ),
        (
            [
                "Host: localhost",
                "Sec-Fetch-Site: cross-site",
                "Sec-Fetch-Mode: navigate",
                "Sec-Fetch-Dest: document",
            ],
            200,
        ),
    ],
)
async def test_pages_from_elsewhere_are_kept_out_but_links_may_be_followed(
    sites: Sites, lines: list[str], status: int
) -> None:
    site = await sites.broker(await sites.upstream(echo), consumer=OWN)
    client = await site.raw(own_port=True)

    await client.send("\r\n".join(["GET / HTTP/1.1", *lines, "", ""]).encode())

    assert (await client.head()).status == status
    assert bool(site.broker.asked) is (status == 200)


async def test_a_link_to_the_brokers_own_address_is_not_followed(sites: Sites) -> None:
    site = await sites.broker()

    async with site.client.get(
        site.url("/api/status"),
        headers={
            "Sec-Fetch-Site": "cross-site",
            "Sec-Fetch-Mode": "navigate",
            "Sec-Fetch-Dest": "document",
        },
    ) as response:
        assert response.status == 403


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (None, 401),
        (f"Bearer {KEY}", 200),
        (basic("me", KEY), 200),
        (basic("", KEY), 200),
        (basic(KEY, ""), 401),
        (basic("me", f"{KEY}x"), 401),
        ("Basic ???", 401),
        ("Basic /w==", 401),
        (f"Basic {KEY}", 401),
        (f"Digest {KEY}", 401),
    ],
)
async def test_the_keys_hold_here_too_and_a_browser_may_give_one_as_password(
    sites: Sites, authorization: str | None, status: int
) -> None:
    site = await sites.broker(await sites.upstream(echo), consumer=OWN, api_keys=(KEY,))
    headers = {} if authorization is None else {"Authorization": authorization}

    for url in (site.own_url("/x"), site.own_url("/healthz"), site.url("/v1/tts")):
        async with site.client.get(url, headers=headers) as response:
            assert response.status == status
            if status == 200:
                assert "authorization" not in await heard(response)
            else:
                schemes = response.headers.getall("WWW-Authenticate")
                assert [each.partition(" ")[0] for each in schemes] == ["Bearer", "Basic"]


async def test_without_keys_the_consumers_own_login_passes(sites: Sites) -> None:
    site = await sites.broker(await sites.upstream(echo), consumer=OWN)

    async with site.client.get(
        site.own_url("/"), headers={"Authorization": basic("a", "b"), "Cookie": "s=1"}
    ) as response:
        seen = await heard(response)
    assert (seen["authorization"], seen["cookie"]) == (basic("a", "b"), "s=1")


@pytest.mark.parametrize(
    ("place", "seen"),
    [
        ("{own}/login?x#y", "/login?x#y"),
        ("{own}", "/"),
        ("{own}?x", "/?x"),
        ("/login", "/login"),
        ("login", "login"),
        ("{own}1/x", "{own}1/x"),
        ("http://elsewhere.example/x", "http://elsewhere.example/x"),
    ],
)
async def test_a_redirect_to_the_consumer_leads_to_its_port(
    sites: Sites, place: str, seen: str
) -> None:
    async def redirect(request: web.Request) -> web.StreamResponse:
        own = f"http://{request.host}"
        return web.Response(
            status=302, headers={"Location": place.format(own=own), "Set-Cookie": "s=1; Path=/"}
        )

    url = await sites.upstream(redirect)
    site = await sites.broker(url, consumer=OWN)

    async with site.client.get(site.own_url("/"), allow_redirects=False) as response:
        assert response.status == 302
        assert response.headers["Location"] == seen.format(own=url)
        assert response.headers["Set-Cookie"] == "s=1; Path=/"
    async with site.client.get(site.url("/consumers/tts/"), allow_redirects=False) as response:
        assert response.headers["Location"] == place.format(own=url)


# WebSockets


async def web_socket(request: web.Request) -> web.StreamResponse:
    """As ComfyUI does: a page of another origin gets 403."""
    if request.headers.get("Origin", f"http://{request.host}") != f"http://{request.host}":
        return web.Response(status=403)
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        await socket.send_str(f"{request.raw_path} {message.data}")
    return socket


async def connect(site: Site, **headers: str) -> aiohttp.ClientWebSocketResponse:
    return await site.client.ws_connect(site.own_url("/ws?clientId=1"), headers=headers)


async def test_a_web_socket_is_a_job_for_as_long_as_it_is_open(sites: Sites) -> None:
    site = await sites.broker(await sites.upstream(web_socket), consumer=OWN)

    async with asyncio.timeout(5):
        client = await connect(site, Origin=f"http://127.0.0.1:{site.own_port}")
        await client.send_str("hello")
        assert await client.receive_str() == "/ws?clientId=1 hello"
        assert site.broker.running == ["job-1"]
        await client.close()
        await site.broker.until(lambda broker: bool(broker.outcomes))


async def test_a_web_socket_that_is_no_activity_stays_open_beside_the_jobs(sites: Sites) -> None:
    site = await sites.broker(
        await sites.upstream(web_socket), consumer={**OWN, "not_activity": ["GET /ws"]}
    )
    await site.broker.hold()

    async with asyncio.timeout(5):
        client = await connect(site)
        await client.send_str("hello")
        assert await client.receive_str() == "/ws?clientId=1 hello"
        await client.close()
    assert not site.broker.asked


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Origin": "http://evil.example"}, 403), ({"Authorization": "Bearer wrong"}, 401)],
)
async def test_a_web_socket_of_a_stranger_does_not_reach_the_consumer(
    sites: Sites, headers: dict[str, str], status: int
) -> None:
    async def never(_request: web.Request) -> web.StreamResponse:
        raise AssertionError("the consumer must not be asked")

    keys = (KEY,) if "Authorization" in headers else ()
    site = await sites.broker(await sites.upstream(never), consumer=OWN, api_keys=keys)

    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await connect(site, **headers)
    assert refused.value.status == status
    assert not site.broker.asked


async def test_who_is_not_there_is_told_at_once(sites: Sites, unused_port: int) -> None:
    site = await sites.broker(
        f"http://127.0.0.1:{unused_port}", consumer={**OWN, "not_activity": ["GET /*"]}
    )

    async with asyncio.timeout(2), site.client.get(site.own_url("/queue")) as response:
        assert response.status == 502
        document = json.loads(await response.text())
    assert document["detail"] == "tts cannot be reached: connection refused."
    assert not site.broker.asked


async def test_it_follows_a_change_of_what_is_no_activity(sites: Sites) -> None:
    site = await sites.broker(await sites.upstream(echo), consumer=OWN)
    config = site.app[DEPS].config
    tts = config.consumers["tts"].model_copy(update={"not_activity": ("GET /*",)})

    reconfigure(site.app, config.model_copy(update={"consumers": {"tts": tts}}))
    async with site.client.get(site.own_url("/queue")) as response:
        assert response.status == 200
    assert site.broker.outcomes == {}
