"""InvokeAI by its preset, on the CPU: graphs without a model, and a VAE of random weights."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.real_services.behind import Setup, behind
from tests.support.browser import needs_chromium, page
from tests.support.installed import INVOKEAI, needs_invokeai
from tests.support.real_program import real_program
from tests.support.recognition import recognised
from tests.support.servers import free_port

QUEUE = "/api/v1/queue/default"
ROUTES = {"/v1/batch": {"consumer": "invokeai", "path": f"{QUEUE}/enqueue_batch"}}
LOOKS = (
    "/",
    "/api/v1/app/app_deps",
    "/api/v1/app/runtime_config",
    "/api/v1/app/version",
    "/api/v1/boards/?all=true",
    "/api/v1/client_state/default/get_by_key?key=ui",
    "/api/v1/images/?limit=0&offset=0",
    f"{QUEUE}/current",
    f"{QUEUE}/item_ids",
    f"{QUEUE}/status",
    "/api/v2/models/",
    "/api/v2/models/stats",
    "/openapi.json",
    "/ws/socket.io/?EIO=4&transport=polling",
)
SLOW = 6000
"""Pixels of a side, of which a picture is blurred for some seconds, in one go."""
MANY = 60
"""Small pictures, one after the other, which take some seconds as well."""

pytestmark = [pytest.mark.real_services, pytest.mark.timeout(300), needs_invokeai]


def environment(port: int) -> dict[str, str]:
    at = {"INVOKEAI_HOST": "127.0.0.1", "INVOKEAI_PORT": str(port)}
    return {"INVOKEAI_DEVICE": "cpu", "HF_HUB_OFFLINE": "1", **at}


def command(root: Path) -> list[str]:
    return [str(INVOKEAI), "--root", str(root)]


@pytest.fixture(scope="module")
def invokeai(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of one without a model."""
    port = free_port()
    folder = tmp_path_factory.mktemp("invokeai")
    url = f"http://127.0.0.1:{port}"
    up = f"{url}/api/v1/app/version"
    env = environment(port)
    with real_program(command(folder / "root"), up=up, log=folder / "log", env=env):
        yield url


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae") / "tiny"
    script = Path(__file__).with_name("tiny_vae.py")
    subprocess.run([INVOKEAI.with_name("python"), script, folder], check=True, timeout=180)
    return folder


@pytest.fixture
async def setup(invokeai: str, tmp_path: Path) -> AsyncIterator[Setup]:
    async with behind(tmp_path, "invokeai", invokeai, preset="invokeai", routes=ROUTES) as setup:
        yield setup


async def ask(url: str, method: str = "GET", body: Any = None) -> Any:
    """Its answer, which is JSON and no refusal."""
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, json=body) as response,
    ):
        assert response.status in {200, 201}, await response.text()
        return await response.json()


def graph(nodes: Mapping[str, Mapping[str, Any]], *edges: str) -> dict[str, Any]:
    """``a.b c.d`` is an edge from the field b of the node a to the field d of the node c."""
    ends = [[end.split(".") for end in edge.split(" ")] for edge in edges]
    return {
        "nodes": {name: {"id": name, "use_cache": False, **node} for name, node in nodes.items()},
        "edges": [
            dict(
                zip(
                    ("source", "destination"),
                    ({"node_id": node, "field": field} for node, field in both),
                    strict=True,
                )
            )
            for both in ends
        ],
    }


def blank(side: int = 64) -> dict[str, Any]:
    return {"type": "blank_image", "width": side, "height": side, "is_intermediate": True}


SHORT = graph({"blank": blank()})
IN_ONE_GO = graph(
    {"blank": blank(SLOW), "blur": {"type": "img_blur", "radius": 60, "is_intermediate": True}},
    "blank.image blur.image",
)
ONE_BY_ONE = graph(
    {
        "numbers": {"type": "range", "start": 512, "stop": 512 + MANY},
        "each": {"type": "iterate"},
        "width": {"type": "add", "b": 0},
        "blank": {**blank(512), "is_intermediate": False},
    },
    "numbers.collection each.collection",
    "each.item width.a",
    "width.value blank.width",
)
FAILING = graph({"resize": {"type": "img_resize", "image": {"image_name": "nowhere.png"}}})


def batch(graph: Mapping[str, Any], runs: int = 1) -> dict[str, Any]:
    return {"batch": {"graph": graph, "runs": runs}}


async def enqueued(url: str, graph: Mapping[str, Any], runs: int = 1) -> str:
    """The number of the batch."""
    answer = await ask(f"{url}{QUEUE}/enqueue_batch", "POST", batch(graph, runs))
    assert answer["enqueued"] == runs
    return str(answer["batch"]["batch_id"])


async def outcome(
    setup: Setup, work: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> tuple[int, dict[str, Any]]:
    """Status and answer of a batch that is waited for."""
    async with setup.broker.session.post(
        f"{setup.broker.url}/v1/batch", json=work, headers=headers
    ) as response:
        return response.status, await response.json()


async def counts(setup: Setup, number: str) -> dict[str, int]:
    """Of a batch, those that are not 0."""
    told = await ask(f"{setup.url}{QUEUE}/b/{number}/status")
    return {name: count for name, count in told.items() if isinstance(count, int) and count}


async def until_counted(setup: Setup, number: str, **numbers: int) -> None:
    async with asyncio.timeout(10):
        while await counts(setup, number) != numbers:  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.05)


async def processes(setup: Setup) -> bool:
    """What it says itself."""
    return bool((await ask(f"{setup.url}{QUEUE}/status"))["processor"]["is_processing"])


async def until_it_processes(setup: Setup) -> None:
    async with asyncio.timeout(10):
        while not await processes(setup):  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.02)


class Events:
    """What it tells by its socket.io, of the version 4 of Engine.IO."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def until(self, name: str, text: str) -> str:
        """The first event of that name in which the text occurs."""
        async with asyncio.timeout(30):
            while True:
                event = await self._socket.receive_str()
                if event.startswith(f'42["{name}"') and text in event:
                    return event


@asynccontextmanager
async def listening(setup: Setup) -> AsyncIterator[Events]:
    """Its socket, by the consumer's own port, as its page opens it."""
    address = f"{setup.own_port}/ws/socket.io/?EIO=4&transport=websocket"
    async with setup.broker.session.ws_connect(address) as socket:
        assert (await socket.receive_str()).startswith("0{"), "open"
        await socket.send_str("40")
        assert (await socket.receive_str()).startswith("40{"), "connected"
        await socket.send_str('42["subscribe_queue",{"queue_id":"default"}]')
        yield Events(socket)


async def encoding(url: str, vae: Path, side: int) -> dict[str, Any]:
    """A graph that needs the VAE, which is installed if it is not yet."""
    found = await models(url)
    if not found:
        await ask(f"{url}/api/v2/models/install?inplace=true&source={vae}", "POST", {})
        async with asyncio.timeout(20):
            while not (found := await models(url)):  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(0.05)
    model = {key: found[0][key] for key in ("key", "hash", "name", "base", "type")}
    return graph(
        {
            "loader": {"type": "vae_loader", "vae_model": model},
            "blank": blank(side),
            "encode": {"type": "i2l"},
        },
        "loader.vae encode.vae",
        "blank.image encode.image",
    )


async def models(url: str) -> list[Any]:
    return list((await ask(f"{url}/api/v2/models/"))["models"])


async def cleared(setup: Setup) -> int:
    """How many models have left its cache since its last item began."""
    return int((await ask(f"{setup.url}/api/v2/models/stats"))["cleared"])


async def test_the_lock_stands_until_a_batch_is_done_and_looks_are_answered_meanwhile(
    setup: Setup,
) -> None:
    number = await enqueued(setup.own_port, ONE_BY_ONE, runs=2)
    assert (await setup.broker.consumer("invokeai"))["running"] == 1
    items = (await ask(f"{setup.own_port}{QUEUE}/item_ids"))["item_ids"][:2]

    told = await ask(f"{setup.own_port}{QUEUE}/items_by_ids", "POST", {"item_ids": items})

    assert {each["batch_id"] for each in told} == {number}
    assert (await setup.broker.consumer("invokeai"))["running"] == 1
    assert "completed" not in await counts(setup, number)
    await setup.broker.until("c['invokeai']['running'] == 0", within_s=30)
    assert await counts(setup, number) == {"completed": 2, "total": 2}
    assert (await setup.broker.consumer("invokeai"))["state"] == "resident"


async def test_by_a_route_the_client_is_told_how_its_batch_has_ended(setup: Setup) -> None:
    status, told = await outcome(setup, batch(SHORT, runs=3))
    assert (status, told["completed"], told["total"]) == (200, 3, 3)


async def test_by_a_route_the_client_is_told_that_its_batch_failed(setup: Setup) -> None:
    status, told = await outcome(setup, batch(FAILING, runs=2))
    assert (status, told["failed"], told["total"]) == (500, 2, 2)


async def test_by_a_route_the_client_is_told_that_its_batch_was_cleared(setup: Setup) -> None:
    asking = asyncio.create_task(outcome(setup, batch(ONE_BY_ONE)))
    await until_it_processes(setup)

    await ask(f"{setup.own_port}{QUEUE}/clear", "PUT")

    status, told = await asking
    assert (status, told["total"]) == (500, 0)


async def test_what_it_does_not_take_gets_its_own_answer(setup: Setup) -> None:
    status, told = await outcome(setup, batch(graph({"x": {"type": "nonesuch"}})))
    assert (status, told["detail"][0]["type"]) == (422, "union_tag_invalid")


async def test_a_client_that_leaves_its_route_has_its_batch_cancelled(setup: Setup) -> None:
    client = asyncio.create_task(outcome(setup, batch(ONE_BY_ONE, runs=3)))
    await until_it_processes(setup)
    number = (await ask(f"{setup.url}{QUEUE}/current"))["batch_id"]

    client.cancel()

    await setup.broker.until("c['invokeai']['running'] == 0")
    assert (await counts(setup, number))["canceled"] >= 2


async def test_an_unload_waits_for_the_node_of_a_batch_that_was_cleared(setup: Setup) -> None:
    async with listening(setup) as events:
        await enqueued(setup.own_port, IN_ONE_GO)
        await events.until("invocation_started", '"type":"img_blur"')

    await ask(f"{setup.own_port}{QUEUE}/clear", "PUT")

    await setup.broker.until("c['invokeai']['running'] == 0", within_s=2)
    assert await processes(setup), "its node cannot be interrupted"
    await setup.broker.unload("invokeai")
    assert not await processes(setup)


async def test_an_unload_takes_the_model_out_and_the_next_batch_brings_it_back(
    setup: Setup, vae: Path
) -> None:
    work = batch(await encoding(setup.url, vae, 64))
    assert (await outcome(setup, work))[1]["completed"] == 1
    assert await cleared(setup) == 0

    await setup.broker.unload("invokeai")

    assert await cleared(setup) == 1
    assert (await setup.broker.consumer("invokeai"))["state"] == "absent"
    assert (await outcome(setup, work))[1]["completed"] == 1
    assert await cleared(setup) == 0
    assert (await setup.broker.consumer("invokeai"))["state"] == "resident"


async def test_an_unload_waits_for_a_batch_that_did_not_come_through_the_broker(
    setup: Setup, vae: Path
) -> None:
    await setup.broker.load("invokeai")
    number = await enqueued(setup.url, await encoding(setup.url, vae, 1024), runs=2)
    await until_it_processes(setup)

    await setup.broker.unload("invokeai")

    assert await counts(setup, number) == {"completed": 2, "total": 2}
    assert await cleared(setup) == 1


async def test_what_waits_in_a_queue_that_was_paused_is_in_nobodys_way(setup: Setup) -> None:
    await setup.broker.load("invokeai")
    await ask(f"{setup.own_port}{QUEUE}/processor/pause", "PUT")
    number = await enqueued(setup.url, SHORT)

    await setup.broker.unload("invokeai")

    assert await counts(setup, number) == {"pending": 1, "total": 1}
    await ask(f"{setup.own_port}{QUEUE}/processor/resume", "PUT")
    await until_counted(setup, number, completed=1, total=1)
    assert (await setup.broker.status())["loads"] == 1


async def test_a_retry_is_a_job(setup: Setup) -> None:
    await ask(f"{setup.url}{QUEUE}/clear", "PUT")
    number = await enqueued(setup.url, FAILING)
    await until_counted(setup, number, failed=1, total=1)
    assert (await setup.broker.status())["loads"] == 0
    items = (await ask(f"{setup.own_port}{QUEUE}/item_ids"))["item_ids"]

    await ask(f"{setup.own_port}{QUEUE}/retry_items_by_id", "PUT", items)

    await until_counted(setup, number, failed=2, total=2)
    assert (await setup.broker.status())["loads"] == 1


async def test_looks_load_nothing(setup: Setup) -> None:
    for path in LOOKS:
        async with setup.broker.session.get(setup.own_port + path) as response:
            assert response.status == 200, path
    status = await setup.broker.status()
    assert (status["loads"], status["consumers"]["invokeai"]["last_used_s"]) == (0, None)


async def test_who_listens_to_its_socket_is_told_of_a_batch_and_holds_nothing(
    setup: Setup,
) -> None:
    async with listening(setup) as events:
        assert (await setup.broker.status())["loads"] == 0

        number = await enqueued(setup.own_port, SHORT)

        event = await events.until("queue_item_status_changed", '"status":"completed"')
        assert number in event
        await setup.broker.until("c['invokeai']['running'] == 0")


@needs_chromium
async def test_its_page_is_no_job_and_shows_a_batch_while_it_is_worked_on(
    setup: Setup, tmp_path: Path
) -> None:
    await ask(f"{setup.url}/api/v1/images/uncategorized", "DELETE")
    thumbnails = "document.querySelectorAll('img[src*=thumbnail]').length"
    async with page(tmp_path) as tab:
        await tab.goto(setup.own_port)
        await tab.until("document.body.innerText.includes('Uncategorized')")
        assert await tab.evaluate(thumbnails) == 0
        assert (await setup.broker.status())["loads"] == 0

        await enqueued(setup.own_port, ONE_BY_ONE, runs=20)

        await tab.until(f"{thumbnails} > 0")
        assert (await setup.broker.consumer("invokeai"))["running"] == 1
        await ask(f"{setup.own_port}{QUEUE}/cancel_all_except_current", "PUT")
        await setup.broker.until("c['invokeai']['running'] == 0", within_s=30)
        assert tab.failed == []
        assert [socket.partition("?")[0] for socket in tab.sockets] == [
            f"{setup.own_port.replace('http', 'ws')}/ws/socket.io/"
        ]


@needs_chromium
async def test_what_is_invoked_in_its_page_is_a_job(setup: Setup, tmp_path: Path) -> None:
    async with page(tmp_path) as tab:
        await tab.goto(setup.own_port)
        await tab.click("Workflows")
        await tab.click("Create a new Workflow")
        await tab.click("Load")
        await tab.click("Add Node")
        await tab.type("input[placeholder='Search for nodes']", "blank image")
        await tab.click("Blank Image")
        assert (await setup.broker.status())["loads"] == 0

        await tab.click("Invoke")

        await setup.broker.until("c['invokeai']['running'] == 1")
        await setup.broker.until("c['invokeai']['running'] == 0")
        status = await setup.broker.status()
        assert (status["loads"], status["consumers"]["invokeai"]["state"]) == (1, "resident")
        assert tab.failed == []


def running(root: Path) -> list[str]:
    """The processes of the one with this root."""
    found = subprocess.run(
        ["pgrep", "-f", "--", f"--root {root}"], capture_output=True, text=True, check=False
    )
    return found.stdout.split()


async def test_as_a_program_of_the_brokers_it_is_started_for_a_batch_and_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    port, root = free_port(), tmp_path / "root"
    started: dict[str, Any] = {"preset": "invokeai", "command": command(root)}
    async with behind(
        tmp_path,
        "invokeai",
        f"http://127.0.0.1:{port}",
        env=environment(port),
        routes=ROUTES,
        **started,
    ) as setup:
        async with setup.broker.session.get(setup.own_port) as response:
            assert response.status == 502
        assert running(root) == []

        assert (await outcome(setup, batch(SHORT)))[1]["completed"] == 1
        assert running(root) != []
        await setup.broker.unload("invokeai")
        assert running(root) != [], "its cache was emptied"
        assert (await outcome(setup, batch(SHORT)))[1]["completed"] == 1
        await setup.broker.stop(within_s=30)
        assert running(root) == []


async def test_with_several_users_the_broker_asks_as_an_administrator(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = {**environment(port), "INVOKEAI_MULTIUSER": "true"}
    up = f"{url}/api/v1/app/version"
    account = {"email": "someone@example.org", "password": "not-a-secret-1A"}
    with real_program(command(tmp_path / "root"), up=up, log=tmp_path / "log", env=env):
        await ask(f"{url}/api/v1/auth/setup", "POST", {**account, "display_name": "someone"})
        token = (await ask(f"{url}/api/v1/auth/login", "POST", account))["token"]
        headers = {"Authorization": f"Bearer {token}"}
        consumer: dict[str, Any] = {"preset": "invokeai", "headers": headers}
        async with behind(tmp_path, "invokeai", url, routes=ROUTES, **consumer) as setup:
            status, _ = await outcome(setup, batch(SHORT))
            assert status == 401, "who asks has a token of its own, or none"

            status, told = await outcome(setup, batch(ONE_BY_ONE), headers)

            assert (status, told["completed"]) == (200, 1)
            await setup.broker.unload("invokeai")


async def test_it_is_recognised(invokeai: str) -> None:
    assert await recognised(invokeai) == ["invokeai"]
