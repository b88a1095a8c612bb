"""Jobs that outlast their answer, in front of a stand-in ComfyUI."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from mgpu.api import body as request_body
from mgpu.api import leaseholder
from mgpu.config import presets
from tests.api.conftest import Site, Sites
from tests.api.raw import RawClient
from tests.support.comfyui import (
    StandinComfyUI,
    broken_picture,
    completion,
    picture,
    slow_picture,
)
from tests.support.png import read_png

LEAVES_WITHIN_S = 1.0
ROUTES = {"/v1/image": {"consumer": "tts", "path": "/prompt"}}
SHAPES = {
    "/v1/image": "the client waits for the result",
    "/consumers/tts/prompt": "the client gets the consumer's own answer",
}


@pytest.fixture
async def site(sites: Sites, comfyui: StandinComfyUI) -> Site:
    consumer = {
        "completion": completion(),
        "not_activity": ["POST /interrupt", "POST /queue", "GET /queue", "GET /history/*"],
    }
    return await sites.broker(comfyui.url, consumer=consumer, routes=ROUTES)


def post(site: Site, path: str, graph: Any, **how: Any) -> Any:
    return site.client.post(site.url(path), json={"prompt": graph}, **how)


async def sent(site: Site, path: str, graph: Any) -> RawClient:
    client = await site.raw()
    body = json.dumps({"prompt": graph}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    await client.send(head.encode() + body)
    return client


async def ended(site: Site, *outcomes: str, within_s: float = 5.0) -> None:
    await site.broker.until(
        lambda broker: list(broker.outcomes.values()) == list(outcomes), within_s
    )


async def until(holds: Callable[[], bool], *, within_s: float = 5.0) -> None:
    async with asyncio.timeout(within_s):
        while True:
            if holds():
                return
            await asyncio.sleep(0.01)


# The client gets the consumer's own answer


@pytest.mark.parametrize("path", ["/consumers/tts/prompt", "/consumers/tts/api/prompt"])
async def test_the_answer_comes_at_once_and_the_lease_stands_until_the_work_is_done(
    site: Site, comfyui: StandinComfyUI, path: str
) -> None:
    comfyui.gate.close()

    async with post(site, path, picture()) as response:
        answer = await response.json()
        assert response.headers["X-MGPU-Job"] == "job-1"
        assert response.headers["X-MGPU-Consumer"] == "tts"
        assert "queue;dur=250.000" in response.headers["Server-Timing"]
    assert answer == {"prompt_id": answer["prompt_id"], "number": 0, "node_errors": {}}
    await comfyui.gate.reached()
    assert site.broker.running == ["job-1"]

    comfyui.gate.open()

    await ended(site, "done")
    assert list(comfyui.history) == [answer["prompt_id"]]


async def test_its_connection_is_free_for_the_next_request_meanwhile(
    site: Site, comfyui: StandinComfyUI
) -> None:
    comfyui.gate.close()
    client = await sent(site, "/consumers/tts/prompt", picture())
    async with asyncio.timeout(5):
        await client.reader.readuntil(b"\r\n\r\n")
        await client.reader.readuntil(b"}")

        await client.send(b"GET /consumers/tts/queue HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = await client.reader.readuntil(b"\r\n\r\n")

    assert b" 200 " in head
    assert site.broker.running == ["job-1"]


async def test_who_has_the_answer_may_leave(site: Site, comfyui: StandinComfyUI) -> None:
    comfyui.gate.close()
    client = await sent(site, "/consumers/tts/prompt", picture())
    async with asyncio.timeout(5):
        await client.reader.readuntil(b"}")

    client.reset()
    async with site.client.get(site.url("/consumers/tts/queue")) as response:
        assert len((await response.json())["queue_running"]) == 1
    assert site.broker.running == ["job-1"]
    comfyui.gate.open()

    await ended(site, "done")
    assert not comfyui.interrupts


async def test_the_next_one_waits_for_the_work_of_the_first(
    site: Site, comfyui: StandinComfyUI
) -> None:
    comfyui.gate.close()
    async with post(site, "/consumers/tts/prompt", picture()) as response:
        assert response.status == 200
    second = asyncio.create_task(_status(post(site, "/consumers/tts/prompt", picture())))
    await site.broker.until(lambda broker: bool(broker.waiting))

    assert len(comfyui.prompts) == 1
    comfyui.gate.open()

    assert await second == 200
    await ended(site, "done", "done")


async def test_an_interrupt_passes_and_ends_the_job(site: Site, comfyui: StandinComfyUI) -> None:
    comfyui.gate.close()
    async with post(site, "/consumers/tts/prompt", slow_picture(3)) as response:
        assert response.status == 200
    await comfyui.gate.reached()

    async with site.client.post(site.url("/consumers/tts/interrupt")) as response:
        assert response.status == 200
    assert site.broker.running == ["job-1"]
    comfyui.gate.open()

    await ended(site, "failed")
    assert not comfyui.running


async def test_a_cancel_by_its_id_passes_the_prompt_that_it_is_to_end(
    sites: Sites, comfyui: StandinComfyUI
) -> None:
    preset = presets.find("comfyui", Path("/nowhere")).preset.consumer
    consumer = {"completion": completion(), "not_activity": preset["not_activity"]}
    site = await sites.broker(comfyui.url, consumer=consumer, routes=ROUTES)
    comfyui.gate.close()
    async with post(site, "/consumers/tts/api/prompt", slow_picture(3)) as response:
        work = (await response.json())["prompt_id"]
    await comfyui.gate.reached()

    path = f"/consumers/tts/api/jobs/{work}/cancel"
    async with asyncio.timeout(5), site.client.post(site.url(path)) as response:
        assert await response.json() == {"cancelled": True}
    comfyui.gate.open()

    await ended(site, "failed")
    assert comfyui.history[work]["status"]["completed"] is False


async def test_work_that_somebody_deletes_from_the_queue_ends_the_job(
    site: Site, comfyui: StandinComfyUI
) -> None:
    """ComfyUI's history says the same of it as of work that waits: nothing."""
    comfyui.gate.close()
    async with aiohttp.ClientSession() as person:  # at the consumer's own port
        await (await person.post(f"{comfyui.url}/prompt", json={"prompt": picture()})).read()
        await comfyui.gate.reached()
        async with post(site, "/consumers/tts/prompt", picture(color=1)) as response:
            work = (await response.json())["prompt_id"]
        assert [entry[1] for entry in comfyui.pending] == [work]

        await (await person.post(f"{comfyui.url}/queue", json={"delete": [work]})).read()
        await ended(site, "failed")
    assert comfyui.running


@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"prompt": {}}, "prompt_no_outputs"),
        ({}, "no_prompt"),
        ({"prompt": {"1": {"class_type": "No", "inputs": {}}}}, "invalid_prompt"),
        ({"prompt": picture(width=20000)}, "prompt_outputs_failed_validation"),
    ],
)
async def test_a_refusal_passes_unchanged_and_ends_the_job(
    site: Site, comfyui: StandinComfyUI, path: str, body: Any, kind: str
) -> None:
    async with site.client.post(f"{comfyui.url}/prompt", json=body) as response:
        own = await response.read()
    async with site.client.post(site.url(path), json=body) as response:
        assert response.status == 400
        assert await response.read() == own
        assert response.content_type == "application/json"
    assert json.loads(own)["error"]["type"] == kind
    await ended(site, "done")


# The client waits for the result


async def test_the_answer_is_the_picture_itself(site: Site, comfyui: StandinComfyUI) -> None:
    async with post(site, "/v1/image", picture(24, 16, color=0x00FF00)) as response:
        assert response.status == 200
        assert response.content_type == "image/png"
        assert "mgpu_00001_.png" in response.headers["Content-Disposition"]
        assert response.headers["X-MGPU-Job"] == "job-1"
        shown = read_png(await response.read())
    assert shown.size == (24, 16)
    assert shown.rows[0][:3] == b"\x00\xff\x00"
    await ended(site, "done")


@pytest.mark.parametrize("path", ["/v1/image", "/v1/image?x=1"])
async def test_a_body_that_is_a_workflow_itself_is_sent_as_one(
    site: Site, comfyui: StandinComfyUI, path: str
) -> None:
    """What ComfyUI saves with Export (API) can be sent as it is."""
    async with site.client.post(site.url(path), json=picture(24, 16)) as response:
        assert response.content_type == "image/png"
        assert read_png(await response.read()).size == (24, 16)
    assert comfyui.prompts == [{"prompt": picture(24, 16)}]


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": picture(), "extra_data": {"a": 1}},
        {"prompt": picture(), "9": picture()["9"]},
        {"9": {"inputs": {}}},
        {"batch": {"graph": {"nodes": {}}}},
        [picture()],
        "cat",
    ],
)
async def test_any_other_body_passes_byte_by_byte(sites: Sites, body: Any) -> None:
    sent = json.dumps(body, indent=3).encode()
    seen: list[bytes] = []

    async def refusing(request: web.Request) -> web.StreamResponse:
        seen.append(await request.read())
        return web.Response(status=400)

    url = await sites.upstream(refusing)
    site = await sites.broker(url, consumer={"completion": completion()}, routes=ROUTES)

    async with site.client.post(site.url("/v1/image"), data=sent) as response:
        assert response.status == 400
    assert seen == [sent]


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_too_long_to_be_looked_at_passes_whole(
    sites: Sites, monkeypatch: pytest.MonkeyPatch, *, chunked: bool
) -> None:
    monkeypatch.setattr(request_body, "MAX_SIMPLE_BODY_BYTES", 1000)
    sent = json.dumps(slow_picture(5000)).encode()
    seen: list[bytes] = []

    async def refusing(request: web.Request) -> web.StreamResponse:
        seen.append(await request.read())
        return web.Response(status=400)

    async def chunks() -> AsyncIterator[bytes]:
        yield sent

    url = await sites.upstream(refusing)
    site = await sites.broker(url, consumer={"completion": completion()}, routes=ROUTES)

    data = chunks() if chunked else sent
    async with site.client.post(site.url("/v1/image"), data=data) as response:
        assert response.status == 400
    assert seen == [sent]


@pytest.mark.parametrize("wrapped", [False, True])
async def test_a_workflow_in_the_editors_format_is_refused_before_it_waits(
    site: Site, comfyui: StandinComfyUI, *, wrapped: bool
) -> None:
    saved = {"last_node_id": 9, "nodes": [{"id": 9, "type": "SaveImage"}], "links": []}
    body = {"prompt": saved} if wrapped else saved
    await site.broker.hold()

    status, problem = await _problem(site.client.post(site.url("/v1/image"), json=body))

    assert (status, problem["type"]) == (400, "urn:mgpu:bad-request")
    assert "Export it in API format" in problem["detail"]
    assert not site.broker.asked
    assert not comfyui.prompts


@pytest.mark.parametrize("name", ["images", "gifs", "video", "audio", "3d"])
async def test_files_are_found_under_every_name_that_nodes_give_them(
    sites: Sites, name: str
) -> None:
    async def answering(request: web.Request) -> web.StreamResponse:
        if request.method == "POST":
            return web.json_response({"prompt_id": "1"})
        if request.path == "/view":
            return web.Response(body=request.query["filename"].encode())
        file = {"filename": "made", "subfolder": "", "type": "output"}
        outputs = {"8": {"text": ["no file"], "animated": [True]}, "9": {name: [file]}}
        return web.json_response({"1": {"outputs": outputs, "status": {"completed": True}}})

    url = await sites.upstream(answering)
    site = await sites.broker(url, consumer={"completion": completion()}, routes=ROUTES)

    async with post(site, "/v1/image", picture()) as response:
        assert await response.read() == b"made"


async def test_what_is_only_shown_counts_where_nothing_is_saved(site: Site) -> None:
    async with post(site, "/v1/image", picture(save="PreviewImage")) as response:
        assert response.content_type == "image/png"
        assert read_png(await response.read()).size == (8, 8)


async def test_what_is_saved_goes_before_what_is_only_shown(site: Site) -> None:
    graph = {"3": picture(save="PreviewImage")["9"], **picture()}
    async with post(site, "/v1/image", graph) as response:
        assert "mgpu_" in response.headers["Content-Disposition"]


async def test_work_without_files_is_answered_with_the_consumers_last_word(site: Site) -> None:
    graph = picture(save="PreviewAny")
    async with post(site, "/v1/image", graph) as response:
        assert response.status == 200
        (entry,) = (await response.json()).values()
    assert entry["outputs"] == {"9": {"text": ["something"]}}


async def test_a_client_that_takes_json_only_gets_every_file(site: Site) -> None:
    graph = picture()
    graph["5"]["inputs"]["batch_size"] = 3

    async with post(site, "/v1/image", graph, headers={"Accept": "application/json"}) as response:
        document = await response.json()

    assert len(document["id"]) == 36
    names = [file["filename"] for file in document["files"]]
    assert names == [f"mgpu_{number:05}_.png" for number in (1, 2, 3)]
    for file in document["files"]:
        assert file["media_type"] == "image/png"
        assert read_png(base64.b64decode(file["b64_json"])).size == (8, 8)


async def test_who_asks_for_the_result_gets_it_at_the_consumers_own_path_too(site: Site) -> None:
    wish = {"X-MGPU-Answer": "result"}
    async with post(site, "/consumers/tts/prompt", picture(24, 16), headers=wish) as response:
        assert response.content_type == "image/png"
        assert response.headers["X-MGPU-Job"] == "job-1"
        assert read_png(await response.read()).size == (24, 16)
    async with post(site, "/consumers/tts/prompt", broken_picture(), headers=wish) as response:
        assert response.status == 500
        assert (await response.json())["error"]["type"] == "execution_error"
    await ended(site, "done", "failed")


async def test_another_answer_cannot_be_asked_for(site: Site, comfyui: StandinComfyUI) -> None:
    wish = {"X-MGPU-Answer": "soon"}
    async with post(site, "/consumers/tts/prompt", picture(), headers=wish) as response:
        assert response.status == 400
        assert "X-MGPU-Answer must be result" in (await response.json())["detail"]
    assert not comfyui.prompts


@pytest.mark.parametrize("accept", ["application/json, text/plain, */*", "image/*", "*/*"])
async def test_whoever_takes_a_file_too_gets_the_file(site: Site, accept: str) -> None:
    async with post(site, "/v1/image", picture(), headers={"Accept": accept}) as response:
        assert response.content_type == "image/png"


async def test_work_that_fails_is_answered_with_the_consumers_own_words(site: Site) -> None:
    async with post(site, "/v1/image", broken_picture()) as response:
        assert response.status == 500
        document = await response.json()
    assert document["error"] == {
        "type": "execution_error",
        "message": "DefaultCPUAllocator: can't allocate memory",
        "exception_type": "RuntimeError",
        "node_id": "5",
        "node_type": "EmptyImage",
    }
    await ended(site, "failed")


async def test_work_that_is_dropped_is_a_problem_of_the_consumer(
    site: Site, comfyui: StandinComfyUI
) -> None:
    comfyui.gate.close()
    async with aiohttp.ClientSession() as person:
        await (await person.post(f"{comfyui.url}/prompt", json={"prompt": picture()})).read()
        await comfyui.gate.reached()
        client = asyncio.create_task(_problem(post(site, "/v1/image", picture(color=1))))
        await until(lambda: bool(comfyui.pending))
        await (await person.post(f"{comfyui.url}/queue", json={"clear": True})).read()
    status, problem = await client
    assert (status, problem["type"]) == (502, "urn:mgpu:consumer-failed")
    assert "dropped" in problem["detail"]


@pytest.mark.parametrize("way", ["leave", "reset", "half_close"])
async def test_a_client_that_leaves_interrupts_its_work_and_then_the_lease_ends(
    site: Site, comfyui: StandinComfyUI, way: str
) -> None:
    comfyui.gate.close()
    client = await sent(site, "/v1/image", slow_picture(3))
    await comfyui.gate.reached()

    getattr(client, way)()

    await until(lambda: bool(comfyui.interrupts), within_s=LEAVES_WITHIN_S)
    assert site.broker.running == ["job-1"], "it computes still"
    comfyui.gate.open()
    await ended(site, "cancelled")
    assert not comfyui.running
    assert comfyui.history


@pytest.mark.parametrize("minds_prompt_id", [True, False])
async def test_a_client_that_leaves_takes_its_work_out_of_the_consumers_queue(
    site: Site, comfyui: StandinComfyUI, *, minds_prompt_id: bool
) -> None:
    comfyui.minds_prompt_id = minds_prompt_id
    comfyui.gate.close()
    async with aiohttp.ClientSession() as person:
        await (await person.post(f"{comfyui.url}/prompt", json={"prompt": picture()})).read()
    await comfyui.gate.reached()
    client = await sent(site, "/v1/image", picture(color=1))
    await until(lambda: bool(comfyui.pending))

    client.leave()

    await ended(site, "cancelled", within_s=LEAVES_WITHIN_S)
    assert not comfyui.pending
    assert comfyui.running, "the other's is left alone"
    assert not comfyui.interrupts


@pytest.mark.parametrize("path", SHAPES)
async def test_a_client_that_leaves_while_it_waits_asks_nothing(
    site: Site, comfyui: StandinComfyUI, path: str
) -> None:
    await site.broker.hold()
    client = await sent(site, path, picture())
    await site.broker.until(lambda broker: bool(broker.waiting))

    client.leave()

    await ended(site, "cancelled", within_s=LEAVES_WITHIN_S)
    site.broker.let_go()
    assert not comfyui.prompts


# Time, and consumers that die


@pytest.mark.parametrize("path", SHAPES)
async def test_work_that_takes_too_long_is_interrupted(
    site: Site, comfyui: StandinComfyUI, path: str
) -> None:
    site.broker.job_timeout_s = 0.2
    comfyui.gate.close()

    client = asyncio.create_task(_status(post(site, path, slow_picture(3))))
    await until(lambda: bool(comfyui.interrupts), within_s=5)
    assert site.broker.running == ["job-1"]
    comfyui.gate.open()

    assert await client == (504 if path == "/v1/image" else 200)
    await ended(site, "failed")


async def test_work_that_cannot_be_stopped_gives_the_lease_back_in_the_end(
    site: Site, comfyui: StandinComfyUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaseholder, "STOP_TIMEOUT_S", 0.2)
    site.broker.job_timeout_s = 1.0  # long enough for ComfyUI to have taken the work by then
    comfyui.gate.close()

    with capture_logs() as logs:
        assert await _status(post(site, "/v1/image", slow_picture(3))) == 504

    assert "work may go on" in [line["event"] for line in logs]


async def test_a_consumer_that_dies_at_work_is_told(site: Site, comfyui: StandinComfyUI) -> None:
    comfyui.gate.close()
    client = asyncio.create_task(_problem(post(site, "/v1/image", picture())))
    await comfyui.gate.reached()

    await comfyui.close()

    status, problem = await client
    assert (status, problem["type"]) == (502, "urn:mgpu:consumer-failed")
    assert "nothing listens" in problem["detail"]
    await ended(site, "failed")


async def test_the_lease_ends_when_the_consumer_dies_after_its_answer(
    site: Site, comfyui: StandinComfyUI
) -> None:
    comfyui.gate.close()
    async with post(site, "/consumers/tts/prompt", picture()) as response:
        assert response.status == 200

    with capture_logs() as logs:
        await comfyui.close()
        await ended(site, "failed")
        await site.server.close()

    assert "job failed after its answer" in [line["event"] for line in logs]


async def test_the_broker_ends_and_leaves_the_work_alone(
    site: Site, comfyui: StandinComfyUI
) -> None:
    comfyui.gate.close()
    async with post(site, "/consumers/tts/prompt", slow_picture(3)) as response:
        assert response.status == 200
    await comfyui.gate.reached()

    async with asyncio.timeout(5):
        await site.server.close()

    assert list(site.broker.outcomes.values()) == ["cancelled"]
    assert comfyui.running
    assert not comfyui.interrupts


async def test_an_answer_that_names_no_work_is_the_end(sites: Sites) -> None:
    async def at_once(request: web.Request) -> web.StreamResponse:
        return web.json_response({"done": True}, headers={"X-Own": "1"})

    url = await sites.upstream(at_once)
    site = await sites.broker(url, consumer={"completion": completion()}, routes=ROUTES)

    for path in SHAPES:
        async with post(site, path, picture()) as response:
            assert await response.json() == {"done": True}
            assert response.headers["X-Own"] == "1"
    await ended(site, "done", "done")


async def test_what_is_to_be_dropped_does_not_reach_the_consumer(sites: Sites) -> None:
    seen: list[tuple[str | None, str | None]] = []

    async def at_once(request: web.Request) -> web.StreamResponse:
        seen.append((request.headers.get("X-A"), request.headers.get("X-B")))
        return web.json_response({"done": True})

    consumer = {"completion": completion(), "drop_headers": ["X-A"]}
    site = await sites.broker(await sites.upstream(at_once), consumer=consumer, routes=ROUTES)

    for path in SHAPES:
        async with post(site, path, picture(), headers={"X-A": "1", "X-B": "2"}) as response:
            assert response.status == 200
    assert seen == [(None, "2")] * len(SHAPES)


async def test_the_consumers_headers_go_with_what_the_broker_asks_and_not_with_the_job(
    sites: Sites,
) -> None:
    seen: dict[str, str | None] = {}

    async def with_a_key(request: web.Request) -> web.StreamResponse:
        seen[request.path] = request.headers.get("Authorization")
        match request.path:
            case "/prompt":
                return web.json_response({"prompt_id": "7"})
            case "/history/7":
                files = {"images": [{"filename": "a", "subfolder": "", "type": "output"}]}
                told = {"status": {"completed": True}, "outputs": {"9": files}}
                return web.json_response({"7": told})
        return web.Response(body=b"a picture", content_type="image/png")

    consumer = {"completion": completion(), "headers": {"Authorization": "Bearer secret"}}
    site = await sites.broker(await sites.upstream(with_a_key), consumer=consumer, routes=ROUTES)

    async with post(site, "/v1/image", picture()) as response:
        assert await response.read() == b"a picture"
    assert seen == {"/prompt": None, "/history/7": "Bearer secret", "/view": "Bearer secret"}


@pytest.mark.parametrize("work", ["..", "", [], {}, True, "x" * 2000])
async def test_an_id_that_cannot_be_asked_for_is_none(sites: Sites, work: Any) -> None:
    asked: list[str] = []

    async def lying(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return web.json_response({"prompt_id": work})

    url = await sites.upstream(lying)
    site = await sites.broker(url, consumer={"completion": completion()}, routes=ROUTES)

    async with post(site, "/v1/image", picture()) as response:
        assert await response.json() == {"prompt_id": work}
    assert asked == ["/prompt"]


async def test_an_id_stays_in_its_place(sites: Sites) -> None:
    """Whatever a consumer calls its work, only the consumer is asked, below the same path."""
    asked: list[str] = []

    async def lying(request: web.Request) -> web.StreamResponse:
        asked.append(request.raw_path)
        if request.method == "POST":
            return web.json_response({"prompt_id": "@evil.invalid/../%2e?x#y"})
        return web.json_response({"x": {"status": {"completed": True}}})

    url = await sites.upstream(lying)
    site = await sites.broker(url, consumer={"completion": completion()}, routes=ROUTES)

    async with post(site, "/v1/image", picture()) as response:
        assert response.status == 200
    assert asked == ["/prompt", "/history/%40evil.invalid%2F..%2F%252e%3Fx%23y"]


async def _status(request: Any) -> int:
    async with request as response:
        status: int = response.status
        return status


async def _problem(request: Any) -> tuple[int, dict[str, Any]]:
    async with request as response:
        return response.status, await response.json(content_type="application/problem+json")
