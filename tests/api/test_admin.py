from __future__ import annotations

import pytest
from aiohttp import web

from mgpu import errors
from mgpu.api.deps import Limits
from mgpu.config.residency import load_body
from mgpu.core.model import ConsumerState
from tests.api.conftest import Sites
from tests.api.fake_broker import FakeBroker

VERBS = ["load", "unload", "pin", "unpin", "restart"]
ACTIONS = [*(f"/api/consumers/tts/{verb}" for verb in VERBS), "/api/pause", "/api/resume"]


async def test_status_has_the_promised_shape(sites: Sites) -> None:
    site = await sites.broker()

    async with site.client.get(site.url("/api/status")) as response:
        assert response.content_type == "application/json"
        document = await response.json()

    assert document == {
        "gpus": [
            {
                "index": 0,
                "uuid": "GPU-0",
                "name": "Fake",
                "healthy": True,
                "error": None,
                "total_mib": 24576,
                "free_mib": 20000,
                "reserved_mib": 16,
                "foreign_mib": 8,
                "lock": {"consumer": None, "jobs": []},
                "foreign": [],
            }
        ],
        "consumers": {
            "tts": {
                "state": "absent",
                "healthy": True,
                "footprint_mib": 2400,
                "measured_mib": None,
                "gpus": [0],
                "running": 0,
                "queued": 0,
                "last_used_s": None,
                "pinned": False,
                "footprint_source": "configured",
                "held_mib": None,
                "busy": False,
            }
        },
        "queue": [],
        "paused": False,
        "paused_s": None,
        "pause_kept": False,
        "draining": False,
        "evictions": 3,
        "loads": 4,
        "problems": [],
    }


async def test_status_shows_who_holds_the_lock_and_who_waits(sites: Sites) -> None:
    site = await sites.broker()
    site.broker.eta_s = 12.34567
    await site.broker.hold()
    client = await site.raw()
    await client.send(b"GET /v1/tts HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await site.broker.until(lambda broker: bool(broker.waiting))

    async with site.client.get(site.url("/api/status")) as response:
        document = await response.json()

    assert document["queue"] == [
        {"job": "job-1", "consumer": "tts", "position": 1, "waited_s": 1.5, "eta_s": 12.346}
    ]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", None),
        (b"", "application/json"),
        (b"", "application/octet-stream"),
        (b"{}", "application/json"),
        (b" { } ", "application/json; charset=utf-8"),
    ],
)
async def test_a_consumer_is_loaded_and_unloaded(
    sites: Sites, body: bytes, content_type: str | None
) -> None:
    site = await sites.broker()
    headers = {"Content-Type": content_type} if content_type else {}

    for action, state in (("load", "resident"), ("unload", "absent")):
        async with site.client.post(
            site.url(f"/api/consumers/tts/{action}"),
            data=body,
            headers=headers,
            skip_auto_headers=["Content-Type"],
        ) as response:
            assert response.status == 200
            assert (await response.json())["state"] == state
    assert site.broker.actions == ["load tts", "unload tts"]


LOADABLE = {"load": {"path": "/load", "body": {"ctx": 1}}, "unload": {"path": "/unload"}}


async def test_a_consumer_is_loaded_with_options(sites: Sites) -> None:
    site = await sites.broker(consumer=LOADABLE)
    url = site.url("/api/consumers/tts/load")

    for body in ({}, {"body": {"ctx": 2}}):
        async with site.client.post(url, json=body) as response:
            assert response.status == 200

    plain, with_options = site.broker.load_keys
    assert plain is None
    assert with_options is not None
    assert load_body(with_options) == {"ctx": 2}


@pytest.mark.parametrize(
    "body",
    [
        b'{"body": 1}',
        b'{"body": null}',
        b'{"body": {}, "more": 1}',
        b'{"body": {"ctx": NaN}}',
        b'{"body": {"ctx": 1e999}}',
        b'{"body": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}",
        b'{"body": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    ],
    ids=["number", "null", "more", "nan", "infinite", "deep", "deeper"],
)
async def test_options_that_make_no_sense_are_refused(sites: Sites, body: bytes) -> None:
    site = await sites.broker(consumer=LOADABLE)

    async with site.client.post(
        site.url("/api/consumers/tts/load"),
        data=body,
        headers={"Content-Type": "application/json"},
    ) as response:
        assert response.status == 400
    assert not site.broker.actions


async def test_a_consumer_that_takes_no_options_says_why(sites: Sites) -> None:
    site = await sites.broker()

    url = site.url("/api/consumers/tts/load")
    async with site.client.post(url, json={"body": {"ctx": 2}}) as response:
        assert response.status == 400
        document = await response.json(content_type="application/problem+json")
    assert "tts takes no such load options: it has no load request" in document["detail"]


async def test_a_job_asks_for_what_its_route_says(sites: Sites) -> None:
    long = {"consumer": "tts", "path": "/tts", "load_body": {"ctx": 2}}

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response()

    url = await sites.upstream(answer)
    site = await sites.broker(url, consumer=LOADABLE, routes={"/v1/long": long})
    for path in ("/v1/long", "/consumers/tts/tts"):
        async with site.client.post(site.url(path)) as response:
            assert response.status == 200

    first, second = [asked.load_key for asked in site.broker.asked.values()]
    assert first is not None
    assert load_body(first) == {"ctx": 2}
    assert second is None


async def test_a_consumer_is_pinned_and_unpinned(sites: Sites) -> None:
    site = await sites.broker()

    for action, pinned in (("pin", True), ("unpin", False)):
        async with site.client.post(site.url(f"/api/consumers/tts/{action}")) as response:
            assert response.status == 200
            assert (await response.json())["pinned"] is pinned
    assert site.broker.actions == ["pin tts", "unpin tts"]


async def test_a_consumer_is_restarted(sites: Sites) -> None:
    site = await sites.broker()

    async with site.client.post(site.url("/api/consumers/tts/restart")) as response:
        assert response.status == 200
        assert (await response.json())["state"] == "resident"
    assert site.broker.actions == ["restart tts"]


async def test_the_broker_is_paused_and_resumed(sites: Sites) -> None:
    site = await sites.broker()

    for action, answer in (
        ("pause", {"paused": True, "resident": []}),
        ("resume", {"paused": False}),
    ):
        async with site.client.post(site.url(f"/api/{action}")) as response:
            assert response.status == 200
            assert await response.json() == answer
        async with site.client.get(site.url("/api/status")) as response:
            assert (await response.json())["paused"] is answer["paused"]
    assert site.broker.actions == ["pause", "resume"]


async def test_a_pause_names_who_has_stayed(sites: Sites) -> None:
    site = await sites.broker()
    site.broker.states["tts"] = ConsumerState.RESIDENT

    async with site.client.post(site.url("/api/pause")) as response:
        assert await response.json() == {"paused": True, "resident": ["tts"]}


async def test_status_says_for_how_long_it_has_been_paused_and_whether_that_was_kept(
    sites: Sites,
) -> None:
    site = await sites.broker()
    site.broker.paused, site.broker.paused_s, site.broker.pause_kept = True, 7200.12345, True
    async with site.client.get(site.url("/api/status")) as response:
        status = await response.json()
    assert (status["paused"], status["paused_s"], status["pause_kept"]) == (True, 7200.123, True)


@pytest.mark.parametrize("path", ACTIONS)
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/x-www-form-urlencoded", b"a=b"),
        ("application/x-www-form-urlencoded", b""),
        ("multipart/form-data; boundary=x", b"--x--"),
        ("text/plain", b"{}"),
        ("text/plain", b""),
        ("text/html", b"{}"),
        ("application/octet-stream", b"{}"),
        ("", b"{}"),
        ("application/json-seq", b"{}"),
        (None, b"{}"),
    ],
)
async def test_what_a_form_can_send_is_refused(
    sites: Sites, path: str, content_type: str | None, body: bytes
) -> None:
    site = await sites.broker()
    headers = {} if content_type is None else {"Content-Type": content_type}

    async with site.client.post(
        site.url(path), data=body, headers=headers, skip_auto_headers=["Content-Type"]
    ) as response:
        assert response.status == 415
        document = await response.json(content_type="application/problem+json")
        assert document["type"] == "urn:mgpu:unsupported-media-type"
    assert not site.broker.actions


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b'{"force": true}', b"\xff", b"1"])
async def test_a_body_that_is_not_understood_is_refused(sites: Sites, body: bytes) -> None:
    site = await sites.broker()

    async with site.client.post(
        site.url(ACTIONS[0]), data=body, headers={"Content-Type": "application/json"}
    ) as response:
        assert response.status == 400
    assert not site.broker.actions


async def test_a_body_that_is_far_too_long_is_refused(sites: Sites) -> None:
    site = await sites.broker()

    async with site.client.post(
        site.url(ACTIONS[0]), data=b" " * 100_000, headers={"Content-Type": "application/json"}
    ) as response:
        assert response.status == 413
    assert not site.broker.actions


async def test_a_body_that_stalls_is_given_up(sites: Sites) -> None:
    site = await sites.broker(limits=Limits(body_idle_s=0.05))
    client = await site.raw()

    await client.send(
        b"POST /api/consumers/tts/load HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{"
    )

    status, _ = await client.problem()
    assert status == 408
    assert not site.broker.actions


async def test_a_client_that_waits_to_be_told_to_go_on_is_told(sites: Sites) -> None:
    site = await sites.broker()
    client = await site.raw()
    await client.send(
        b"POST /api/consumers/tts/load HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
        b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n"
    )

    assert (await client.head()).status == 100
    await client.send(b"{}")

    assert (await client.head()).status == 200


@pytest.mark.parametrize("action", VERBS)
async def test_an_unknown_consumer_is_named_with_its_nearest(sites: Sites, action: str) -> None:
    site = await sites.broker()

    async with site.client.post(site.url(f"/api/consumers/tt/{action}")) as response:
        assert response.status == 404
        document = await response.json(content_type="application/problem+json")
    assert "Did you mean 'tts'?" in document["detail"]


async def test_a_refusal_is_told(sites: Sites) -> None:
    site = await sites.broker()
    site.broker.refuse = errors.NeverFits("It needs more.")

    async with site.client.post(site.url(ACTIONS[0])) as response:
        assert response.status == 507


async def test_asking_for_the_status_changes_nothing(sites: Sites) -> None:
    site = await sites.broker()

    for _ in range(3):
        async with site.client.get(site.url("/api/status")) as response:
            assert response.status == 200

    assert site.broker == FakeBroker()
