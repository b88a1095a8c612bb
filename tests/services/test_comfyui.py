"""ComfyUI in front of a broker, and by itself: the stand-in of the tests, and a real one.

The real one is run where ``MGPU_COMFYUI`` names the folder of a ComfyUI, on the CPU and without
weights; ``scripts/test-comfyui`` says how.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest
import yaml
from yarl import URL

from tests.support.broker_process import BrokerProcess, serving
from tests.support.comfyui import (
    StandinComfyUI,
    broken_picture,
    picture,
    real_comfyui,
    slow_picture,
)
from tests.support.servers import free_port

T = TypeVar("T")
FOLDER = os.environ.get("MGPU_COMFYUI")
REAL = pytest.param(
    "real",
    marks=[
        pytest.mark.real_services,
        pytest.mark.timeout(180),
        pytest.mark.skipif(not FOLDER, reason="MGPU_COMFYUI names no folder of a ComfyUI"),
    ],
)
LONG_STEPS = 60
"""Of a slow workflow: ten seconds or more, at the real one as well."""


@pytest.fixture(scope="module")
def real_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    python = os.environ.get("MGPU_COMFYUI_PYTHON", "python3")
    with real_comfyui(Path(FOLDER or ""), python, tmp_path_factory.mktemp("comfyui")) as where:
        yield where


@pytest.fixture(params=["stand-in", REAL])
async def url(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    if request.param == "real":
        yield request.getfixturevalue("real_url")
        return
    standin = StandinComfyUI(step_s=0.1)
    await standin.start()
    yield standin.url
    await standin.close()


@pytest.fixture
async def direct(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    """Straight to ComfyUI; afterwards nothing of this test is queued there any more."""
    async with aiohttp.ClientSession(url) as session:
        yield session
        async with session.post("/queue", json={"clear": True}):
            pass
        async with session.post("/interrupt"):
            pass
        await until_idle(session)


@pytest.fixture
async def broker(
    url: str, direct: aiohttp.ClientSession, tmp_path: Path
) -> AsyncIterator[BrokerProcess]:
    (tmp_path / "one_colour.json").write_text(json.dumps(picture()))
    places = {"width": "5.inputs.width", "height": "5.inputs.height", "seed": "5.inputs.color"}
    places["prompt"] = "9.inputs.filename_prefix"
    workflow = {"file": "one_colour.json", "places": places, "defaults": {"seed": 0xFF}}
    comfyui = {
        "url": url,
        "preset": "comfyui",
        "listen": f"127.0.0.1:{free_port()}",
        "footprint_mib": 4000,
        "completion": {"poll": {"interval_s": 0.05}},
        "workflows": {"one-colour": workflow},
    }
    config = {
        "gpu": {"backend": "simulated"},
        "consumers": {"comfyui": comfyui},
        "models": {"one-colour": "comfyui"},
        "routes": {
            "/v1/image": {"consumer": "comfyui", "path": "/prompt", "workflow": "one-colour"}
        },
    }
    async with serving(tmp_path, config) as process:
        yield process


@pytest.fixture
async def port(broker: BrokerProcess, tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """ComfyUI's own port at the broker, as a browser uses it that shows ComfyUI's page."""
    document = yaml.safe_load((tmp_path / "broker.yaml").read_text())
    origin = f"http://{document['consumers']['comfyui']['listen']}"
    headers = {"Origin": origin, "Sec-Fetch-Site": "same-origin"}
    async with aiohttp.ClientSession(origin, headers=headers) as session:
        yield session


async def until(ask: Callable[[], Awaitable[T]], fits: Callable[[T], bool]) -> T:
    """Ask again and again, until the answer fits."""
    async with asyncio.timeout(60):
        while True:
            answer = await ask()
            if fits(answer):
                return answer
            await asyncio.sleep(0.01)


# What ComfyUI does by itself: the stand-in is held to it


async def submit(session: aiohttp.ClientSession, graph: Any, **extra: Any) -> str:
    async with session.post("/prompt", json={"prompt": graph, **extra}) as response:
        assert response.status == 200
        answer = await response.json()
    assert set(answer) == {"prompt_id", "number", "node_errors"}
    assert answer["node_errors"] == {}
    work: str = answer["prompt_id"]
    return work


async def history(session: aiohttp.ClientSession, work: str) -> Any:
    async with session.get(f"/history/{work}") as response:
        assert response.status == 200
        return await response.json()


async def queue(session: aiohttp.ClientSession) -> tuple[list[str], list[str]]:
    async with session.get("/queue") as response:
        document = await response.json()
    assert set(document) == {"queue_running", "queue_pending"}
    running, pending = document["queue_running"], document["queue_pending"]
    return [entry[1] for entry in running], [entry[1] for entry in pending]


async def until_idle(session: aiohttp.ClientSession) -> None:
    await until(lambda: queue(session), lambda found: found == ([], []))


async def entry_of(session: aiohttp.ClientSession, work: str) -> dict[str, Any]:
    """What the history says of it in the end."""
    found = await until(lambda: history(session, work), bool)
    assert list(found) == [work]
    entry: dict[str, Any] = found[work]
    assert set(entry) == {"prompt", "outputs", "status", "meta"}
    assert set(entry["status"]) == {"status_str", "completed", "messages"}
    return entry


async def running(session: aiohttp.ClientSession) -> str:
    now, _ = await until(lambda: queue(session), lambda found: bool(found[0]))
    return now[0]


async def test_what_is_done_is_in_the_history_with_its_files(
    direct: aiohttp.ClientSession,
) -> None:
    entry = await entry_of(direct, await submit(direct, picture(24, 16, color=0x00FF01)))

    assert (entry["status"]["status_str"], entry["status"]["completed"]) == ("success", True)
    kinds = [kind for kind, _ in entry["status"]["messages"]]
    assert kinds == ["execution_start", "execution_cached", "execution_success"]
    ((node, output),) = entry["outputs"].items()
    assert node == "9"
    (file,) = output["images"]
    assert set(file) == {"filename", "subfolder", "type"}
    async with direct.get("/view", params=file) as response:
        assert response.content_type == "image/png"
        assert (await response.read())[:8] == b"\x89PNG\r\n\x1a\n"
    async with direct.get("/view", params={**file, "filename": "no.png"}) as response:
        assert (response.status, await response.read()) == (404, b"")


async def test_what_has_not_ended_is_not_in_the_history(direct: aiohttp.ClientSession) -> None:
    first = await submit(direct, slow_picture(LONG_STEPS, side=256, color=1))
    second = await submit(direct, picture(color=2))
    await running(direct)

    assert await queue(direct) == ([first], [second])
    assert await history(direct, first) == {}
    assert await history(direct, second) == {}
    assert await history(direct, "never-heard-of") == {}


async def test_what_is_deleted_while_it_waits_is_in_no_list(direct: aiohttp.ClientSession) -> None:
    await submit(direct, slow_picture(LONG_STEPS, side=256, color=3))
    second = await submit(direct, picture(color=4))
    await running(direct)

    async with direct.post("/queue", json={"delete": [second]}) as response:
        assert (response.status, await response.read()) == (200, b"")

    assert second not in [each for part in await queue(direct) for each in part]
    assert await history(direct, second) == {}


async def test_an_interrupt_ends_what_runs_and_nothing_else(direct: aiohttp.ClientSession) -> None:
    first = await submit(direct, slow_picture(LONG_STEPS, side=256, color=5))
    second = await submit(direct, picture(color=6))
    await running(direct)

    async with direct.post("/interrupt", json={"prompt_id": second}) as response:
        assert (response.status, await response.read()) == (200, b"")
    assert await running(direct) == first
    async with direct.post("/interrupt", json={"prompt_id": first}) as response:
        assert response.status == 200

    entry = await entry_of(direct, first)
    assert (entry["status"]["status_str"], entry["status"]["completed"]) == ("error", False)
    kind, about = entry["status"]["messages"][-1]
    assert kind == "execution_interrupted"
    assert {"prompt_id", "node_id", "node_type", "executed"} <= set(about)
    assert (await entry_of(direct, second))["status"]["completed"] is True


async def test_what_fails_says_why_in_its_last_message(direct: aiohttp.ClientSession) -> None:
    entry = await entry_of(direct, await submit(direct, broken_picture()))

    assert (entry["status"]["status_str"], entry["status"]["completed"]) == ("error", False)
    kind, about = entry["status"]["messages"][-1]
    assert kind == "execution_error"
    assert about["exception_type"] == "RuntimeError"
    assert "can't allocate memory" in about["exception_message"]
    assert (about["node_id"], about["node_type"]) == ("5", "EmptyImage")


@pytest.mark.parametrize(
    ("body", "kind", "nodes"),
    [
        ({}, "no_prompt", []),
        ({"prompt": {}}, "prompt_no_outputs", []),
        ({"prompt": {"1": {"class_type": "No", "inputs": {}}}}, "invalid_prompt", []),
        ({"prompt": picture(width=20000)}, "prompt_outputs_failed_validation", ["5"]),
    ],
)
async def test_what_cannot_run_is_refused(
    direct: aiohttp.ClientSession, body: Any, kind: str, nodes: list[str]
) -> None:
    async with direct.post("/prompt", json=body) as response:
        assert response.status == 400
        document = await response.json()
    assert set(document["error"]) == {"type", "message", "details", "extra_info"}
    assert document["error"]["type"] == kind
    assert list(document["node_errors"]) == nodes


async def test_the_web_socket_tells_its_client_of_its_prompt(
    direct: aiohttp.ClientSession,
) -> None:
    async with direct.ws_connect("/ws", params={"clientId": "me"}) as socket:
        hello = await socket.receive_json(timeout=10)
        assert hello["type"] == "status"
        assert hello["data"]["sid"] == "me"
        work = await submit(direct, picture(color=7), client_id="me")
        told = await messages_of(socket, work)
    assert [kind for kind in told if kind in {"execution_start", "execution_success"}] == [
        "execution_start",
        "execution_success",
    ]
    assert "executed" in told


async def messages_of(socket: aiohttp.ClientWebSocketResponse, work: str) -> list[str]:
    """The kinds of messages until the prompt is over."""
    told = []
    async with asyncio.timeout(30):
        while True:
            message = await socket.receive_json()
            told.append(message["type"])
            data = message["data"]
            if message["type"] == "executing" and data["node"] is None:
                assert data["prompt_id"] == work
                return told


async def test_free_is_answered_before_it_acts(direct: aiohttp.ClientSession) -> None:
    work = await submit(direct, slow_picture(10, side=256, color=8))
    await running(direct)

    async with direct.post("/free", json={"free_memory": True}) as response:
        assert (response.status, await response.read()) == (200, b"")

    assert await running(direct) == work
    assert (await entry_of(direct, work))["status"]["completed"] is True


# Through the broker


async def post(broker: BrokerProcess, body: Any, path: str = "/v1/image", **how: Any) -> Any:
    async with broker.session.post(broker.url + path, json=body, **how) as response:
        return response.status, response.content_type, await response.read()


async def test_a_workflow_is_answered_with_its_picture(broker: BrokerProcess) -> None:
    status, kind, content = await post(broker, {"prompt": picture(40, 30, color=0x0000FE)})

    assert (status, kind) == (200, "image/png")
    assert size_of(content) == (40, 30)
    await broker.until("c['comfyui']['running'] == 0")


async def test_a_simple_request_is_filled_into_the_users_workflow(broker: BrokerProcess) -> None:
    status, kind, content = await post(broker, {"prompt": "kept", "width": 48, "seed": 0xFE00})
    assert (status, kind) == (200, "image/png")
    assert size_of(content) == (48, 8)

    status, kind, content = await post(broker, {"prompt": "kept", "width": "48"})
    assert (status, kind) == (400, "application/problem+json")
    assert "'width' must be a number" in json.loads(content)["detail"]


async def test_every_file_comes_as_json_where_that_is_asked_for(broker: BrokerProcess) -> None:
    graph = picture(color=9)
    graph["5"]["inputs"]["batch_size"] = 2
    headers = {"Accept": "application/json"}
    status, _, content = await post(broker, {"prompt": graph}, headers=headers)

    assert status == 200
    files = json.loads(content)["files"]
    assert [size_of(base64.b64decode(file["b64_json"])) for file in files] == [(8, 8), (8, 8)]


async def test_comfyuis_own_errors_come_through(broker: BrokerProcess) -> None:
    status, kind, content = await post(broker, {"prompt": picture(width=20000)})
    assert (status, kind) == (400, "application/json")
    assert json.loads(content)["error"]["type"] == "prompt_outputs_failed_validation"

    status, kind, content = await post(broker, {"prompt": broken_picture()})
    assert (status, kind) == (500, "application/json")
    error = json.loads(content)["error"]
    assert (error["type"], error["exception_type"]) == ("execution_error", "RuntimeError")
    assert "can't allocate memory" in error["message"]
    assert (error["node_id"], error["node_type"]) == ("5", "EmptyImage")


async def test_a_client_that_leaves_interrupts_its_workflow(
    broker: BrokerProcess, direct: aiohttp.ClientSession
) -> None:
    client = asyncio.create_task(
        post(broker, {"prompt": slow_picture(LONG_STEPS, side=256, color=10)})
    )
    work = await running(direct)

    await left(client)

    await broker.until("c['comfyui']['running'] == 0", within_s=10)
    assert await queue(direct) == ([], [])
    entry = await entry_of(direct, work)
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"


async def test_a_client_that_leaves_takes_its_workflow_out_of_the_queue(
    broker: BrokerProcess, direct: aiohttp.ClientSession
) -> None:
    persons = await submit(direct, slow_picture(LONG_STEPS, side=256, color=11))
    await running(direct)
    client = asyncio.create_task(post(broker, {"prompt": picture(color=12)}))
    await until(lambda: queue(direct), lambda found: bool(found[1]))

    await left(client)

    await broker.until("c['comfyui']['running'] == 0", within_s=1.0)
    assert await queue(direct) == ([persons], [])


async def test_a_client_that_leaves_has_its_own_workflow_dropped_and_nobody_elses(
    broker: BrokerProcess, direct: aiohttp.ClientSession
) -> None:
    async def sent(color: int, steps: int) -> asyncio.Task[Any]:
        body = {"prompt": slow_picture(steps, side=256, color=color)}
        before = await queue(direct)
        client = asyncio.create_task(post(broker, body))
        await until(lambda: queue(direct), lambda found: found != before)
        return client

    first = await sent(17, LONG_STEPS)
    one = await running(direct)
    second, third = await sent(18, LONG_STEPS), await sent(19, 1)
    _, (two, three) = await queue(direct)

    await left(second)
    await broker.until("c['comfyui']['running'] == 2", within_s=5)
    assert await queue(direct) == ([one], [three])
    assert await history(direct, two) == {}

    await left(first)
    status, kind, _ = await third

    assert (status, kind) == (200, "image/png")
    assert (await entry_of(direct, one))["status"]["messages"][-1][0] == "execution_interrupted"
    assert (await entry_of(direct, three))["status"]["completed"] is True
    await broker.until("c['comfyui']['running'] == 0")


async def left(client: asyncio.Task[Any]) -> None:
    client.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await client


async def test_a_file_as_comfyui_exports_it_is_sent_as_it_is(broker: BrokerProcess) -> None:
    status, kind, content = await post(broker, picture(24, 16, color=20))
    assert (status, kind) == (200, "image/png")
    assert size_of(content) == (24, 16)

    status, kind, content = await post(broker, {"nodes": [], "links": [], "version": 0.4})
    assert (status, kind) == (400, "application/problem+json")
    assert "Export (API)" in json.loads(content)["detail"]


async def test_openais_images_are_made_by_the_workflow(broker: BrokerProcess) -> None:
    body = {"model": "one-colour", "prompt": "kept", "n": 2, "size": "56x8", "seed": 0x1234}
    status, _, content = await post(broker, body, "/v1/images/generations")

    assert status == 200
    images = [base64.b64decode(one["b64_json"]) for one in json.loads(content)["data"]]
    assert [size_of(image) for image in images] == [(56, 8), (56, 8)]
    assert images[0] != images[1]


# Its web page, on a port of its own


async def test_a_prompt_of_the_page_holds_the_lock_until_it_is_done(
    broker: BrokerProcess, port: aiohttp.ClientSession, direct: aiohttp.ClientSession
) -> None:
    async with port.ws_connect("/ws?clientId=page") as socket:
        assert (await socket.receive_json(timeout=10))["type"] == "status"
        body = {"prompt": slow_picture(5, side=256, color=13), "client_id": "page"}
        async with port.post("/api/prompt", json=body) as response:
            assert response.status == 200
            work = (await response.json())["prompt_id"]
        held = await broker.status()
        assert held["gpus"][0]["lock"]["consumer"] == "comfyui"
        async with port.get("/api/queue") as response:
            assert [entry[1] for entry in (await response.json())["queue_running"]] == [work]
        told = await messages_of(socket, work)
    assert "execution_success" in told
    await broker.until("s['gpus'][0]['lock']['consumer'] is None")
    assert (await entry_of(direct, work))["status"]["completed"] is True


async def test_the_page_interrupts_its_prompt(
    broker: BrokerProcess, port: aiohttp.ClientSession, direct: aiohttp.ClientSession
) -> None:
    body = {"prompt": slow_picture(LONG_STEPS, side=256, color=14)}
    async with port.post("/api/prompt", json=body) as response:
        assert response.status == 200
        work = (await response.json())["prompt_id"]
    await running(direct)

    async with port.post("/api/interrupt", json={}) as response:
        assert response.status == 200

    await broker.until("s['gpus'][0]['lock']['consumer'] is None", within_s=10)
    entry = await entry_of(direct, work)
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"


async def test_the_page_s_second_prompt_stands_in_comfyuis_own_queue(
    broker: BrokerProcess, port: aiohttp.ClientSession, direct: aiohttp.ClientSession
) -> None:
    first = await submit(port, slow_picture(LONG_STEPS, side=256, color=21))
    second = await submit(port, picture(color=22))
    assert await running(direct) == first
    assert await queue(direct) == ([first], [second])
    assert (await broker.consumer("comfyui"))["running"] == 2

    async with port.post("/api/queue", json={"delete": [second]}) as response:
        assert response.status == 200
    await broker.until("c['comfyui']['running'] == 1", within_s=5)
    assert await queue(direct) == ([first], [])

    async with port.post("/api/interrupt", json={"prompt_id": first}) as response:
        assert response.status == 200
    await broker.until("s['gpus'][0]['lock']['consumer'] is None", within_s=10)


@pytest.mark.parametrize(
    ("method", "path", "body", "known"),
    [
        ("POST", "/api/userdata/workflows%2Fa.json", {"nodes": []}, True),
        ("DELETE", "/api/userdata/no-such.json", None, False),
        ("PATCH", "/internal/logs/subscribe", {"clientId": "page", "enabled": False}, True),
        ("POST", "/api/jobs/no-such/cancel", None, None),
        ("POST", "/api/history", {"delete": ["no-such"]}, True),
    ],
)
async def test_what_computes_nothing_does_not_wait_for_a_prompt(
    broker: BrokerProcess,
    port: aiohttp.ClientSession,
    *,
    method: str,
    path: str,
    body: Any,
    known: bool | None,
) -> None:
    """``known``: None where only newer ones have the route."""
    for color in range(4):  # as many as there may be at once
        await submit(port, slow_picture(LONG_STEPS, side=256, color=23 + color))

    url = URL(path, encoded=True)
    async with asyncio.timeout(5), port.request(method, url, json=body) as response:
        assert "X-MGPU-Job" not in response.headers
        assert known is None or response.ok is known

    assert (await broker.consumer("comfyui"))["running"] == 4


async def test_the_page_itself_loads_without_the_lock(port: aiohttp.ClientSession) -> None:
    async with port.get("/") as response:
        assert response.status == 200
        assert "ComfyUI" in await response.text()
        assert "X-MGPU-Job" not in response.headers


async def test_freeing_under_a_running_queue_waits_for_its_turn(
    broker: BrokerProcess, direct: aiohttp.ClientSession
) -> None:
    """An unload is asked for when nothing runs, so the broker's own never meets a running job."""
    client = asyncio.create_task(post(broker, {"prompt": slow_picture(8, side=256, color=15)}))
    await running(direct)
    unload = asyncio.create_task(
        post(broker, None, "/api/consumers/comfyui/unload", headers={"X-MGPU-Priority": "0"})
    )
    status, _, _ = await post(broker, {"free_memory": True}, "/consumers/comfyui/free")
    assert status == 200

    status, kind, _ = await client

    assert (status, kind) == (200, "image/png")
    assert (await unload)[0] in {200, 204}
    assert (await broker.consumer("comfyui"))["state"] == "absent"
    status, _, _ = await post(broker, {"prompt": picture(color=16)})
    assert status == 200


def size_of(content: bytes) -> tuple[int, int]:
    """Of a PNG. ComfyUI writes filters and texts that the tests' own reader does not know."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(content[16:20]), int.from_bytes(content[20:24])
