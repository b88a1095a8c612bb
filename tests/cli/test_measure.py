"""``mgpu measure``: what it asks of a broker, and what it refuses. Figures: ``acceptance``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from mgpu.cli.client import Client
from mgpu.cli.cycles import Bench, _Watch, obstacles
from mgpu.cli.figures import Cycle, figures
from tests.support.servers import free_port

Mgpu = Callable[..., Awaitable[Any]]
Answer = Callable[[web.Request], Awaitable[web.Response]]
StartBroker = Callable[[Answer], Awaitable[TestServer]]
QUICK = ("--settle", "0.1", "--cycles", "1")


def consumer(**keys: Any) -> dict[str, Any]:
    return {"state": "absent", "running": 0, "pinned": False, "held_mib": None} | keys


class FakeBroker:
    """One consumer, which takes nothing unless it is told to."""

    def __init__(self, *, takes_mib: int = 0, **tts: Any) -> None:
        self.asked: list[str] = []
        self.bodies: list[tuple[bytes, str]] = []
        self.takes_mib = takes_mib
        self.job_status = 200
        self.status: dict[str, Any] = {
            "gpus": [{"index": 0, "healthy": True, "free_mib": 8000}],
            "consumers": {"tts": consumer(**tts)},
            "queue": [],
        }

    async def answer(self, request: web.Request) -> web.Response:
        if request.path == "/api/status":
            return web.json_response(self.status)
        self.asked.append(f"{request.method} {request.path_qs}")
        if request.path.startswith("/consumers/"):
            self.bodies.append((await request.read(), request.content_type))
            return web.Response(status=self.job_status, body=b"\x00\xff" * 1000)
        verb = request.path.rpartition("/")[2]
        tts, gpu = self.status["consumers"]["tts"], self.status["gpus"][0]
        tts["state"] = "resident" if verb == "load" else "absent"
        gpu["free_mib"] = 8000 - (self.takes_mib if verb == "load" else 0)
        return web.json_response({})


def write(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "broker.yaml"
    return write(path, "consumers:\n  tts: {url: http://127.0.0.1:1, residual_mib: 40}\n")


async def run(mgpu: Mgpu, start_broker: StartBroker, broker: FakeBroker, *arguments: str) -> Any:
    server = await start_broker(broker.answer)
    return await mgpu("measure", *arguments, *QUICK, "--url", str(server.make_url("")))


async def test_a_cycle_is_a_load_a_job_and_an_unload(mgpu: Mgpu, start_broker: StartBroker) -> None:
    broker = FakeBroker(takes_mib=2000)
    job = ("--request", "POST /tts?voice=a%20b", "--data", '{"text": "hi"}')

    result = await run(mgpu, start_broker, broker, "tts", *job)

    assert result.exit_code == 0, result.output
    assert broker.asked == [
        "POST /api/consumers/tts/load",
        "POST /consumers/tts/tts?voice=a%20b",
        "POST /api/consumers/tts/unload",
        "POST /api/consumers/tts/unload",
    ]
    assert broker.bodies == [(b'{"text": "hi"}', "application/json")]
    assert "2000 MiB" in result.stdout


async def test_a_body_may_come_from_a_file(
    mgpu: Mgpu, start_broker: StartBroker, tmp_path: Path
) -> None:
    broker = FakeBroker(takes_mib=2000)
    wav = tmp_path / "a.wav"
    write(wav, "RIFF")

    await run(mgpu, start_broker, broker, "tts", "--request", "POST /stt", "--data", str(wav))

    assert broker.bodies == [(b"RIFF", "application/octet-stream")]


async def test_one_that_took_nothing_is_not_stored(
    mgpu: Mgpu, start_broker: StartBroker, file: Path
) -> None:
    write(file, "consumers:\n  tts: {url: http://127.0.0.1:1}\n")

    result = await run(mgpu, start_broker, FakeBroker(), "tts", "--store", "-c", str(file))

    assert result.exit_code == 1
    assert "tts took no memory, so nothing was stored" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--request", "tts"),
        ("--request", "FETCH /tts"),
        ("--request", "POST tts"),
        ("--request", "POST /a b"),
        ("--data", "x"),
    ],
)
async def test_a_request_that_is_none_is_bad_usage(
    mgpu: Mgpu, start_broker: StartBroker, arguments: tuple[str, ...]
) -> None:
    broker = FakeBroker()

    result = await run(mgpu, start_broker, broker, "tts", *arguments)

    assert result.exit_code == 2
    assert broker.asked == []


async def test_a_consumer_that_is_not_there_is_named_with_the_nearest(
    mgpu: Mgpu, start_broker: StartBroker
) -> None:
    result = await run(mgpu, start_broker, FakeBroker(), "tss")

    assert result.exit_code == 1
    assert "there is no consumer tss; did you mean tts?" in result.stderr


async def test_a_file_without_the_consumer_is_refused_before_anything_is_done(
    mgpu: Mgpu, start_broker: StartBroker, file: Path
) -> None:
    broker = FakeBroker()
    write(file, "consumers: {stt: {url: http://127.0.0.1:1}}\n")

    result = await run(mgpu, start_broker, broker, "tts", "--store", "-c", str(file))

    assert result.exit_code == 2
    assert "there is no consumer tts" in result.stderr
    assert broker.asked == []


async def test_a_broker_that_is_not_there_cannot_be_reached(mgpu: Mgpu) -> None:
    result = await mgpu("measure", "tts", "--url", f"http://127.0.0.1:{free_port()}")

    assert result.exit_code == 3


@pytest.mark.parametrize("state", ["loading", "unloading", "cooldown", "quarantined"])
async def test_one_that_is_not_at_rest_is_left_alone(
    mgpu: Mgpu, start_broker: StartBroker, state: str
) -> None:
    broker = FakeBroker(state=state)

    result = await run(mgpu, start_broker, broker, "tts", "--force")

    assert result.exit_code == 1
    assert f"tts is {state}" in result.stderr
    assert broker.asked == []


async def test_a_gpu_that_is_ill_measures_nothing(mgpu: Mgpu, start_broker: StartBroker) -> None:
    broker = FakeBroker()
    broker.status["gpus"] = [{"index": 0, "healthy": False, "free_mib": 0}]

    result = await run(mgpu, start_broker, broker, "tts")

    assert result.exit_code == 1
    assert "GPU 0: no measurements" in result.stderr


async def test_one_that_fails_its_job_is_unloaded(mgpu: Mgpu, start_broker: StartBroker) -> None:
    broker = FakeBroker()
    broker.job_status = 500

    result = await run(mgpu, start_broker, broker, "tts", "--request", "POST /tts")

    assert result.exit_code == 1
    assert "the job failed with HTTP 500" in result.stderr
    assert broker.asked[-1] == "POST /api/consumers/tts/unload"


def test_what_stands_in_the_way_is_said_all_at_once() -> None:
    status = {
        "paused": True,
        "consumers": {"tts": consumer(pinned=True), "stt": consumer(running=1)},
        "queue": [{}, {}],
    }

    assert list(obstacles(status, "tts")) == [
        "the broker is paused",
        "tts is pinned",
        "2 jobs wait",
        "stt computes",
    ]


def cycle(before: int, low: int, after: int, **keys: Any) -> Cycle:
    times = {"load_s": 1.0, "job_s": None, "unload_s": 0.5}
    held = {"held_peak_mib": None, "held_after_mib": None}
    return Cycle(before, low, after, **{**times, **held, **keys})


def test_what_its_processes_hold_is_believed_rather_than_what_is_free() -> None:
    done = [cycle(8000, 100, 200, held_peak_mib=peak, held_after_mib=300) for peak in (5, 9, 7)]

    found = figures(done, 3, was_absent=False, configured_residual_mib=1)

    assert (found.footprint_mib, found.residual_mib, found.doubts) == (7, 300, ())


def test_by_free_memory_what_the_first_load_left_behind_is_held_from_then_on() -> None:
    done = [cycle(8000, 4000, 7700), cycle(7700, 4000, 7700)]

    found = figures(done, 2, was_absent=True, configured_residual_mib=0)

    assert [footprint for _, footprint in found.counted] == [4000, 4000]
    assert found.residual_mib == 300


def test_by_free_memory_one_that_was_resident_held_what_is_configured() -> None:
    found = figures([cycle(8000, 4000, 8000)], 1, was_absent=False, configured_residual_mib=250)

    assert (found.footprint_mib, found.residual_mib) == (4250, None)


def test_doubtful_cycles_do_not_count_and_make_the_residual_doubtful() -> None:
    done = [cycle(8000, 4000, 7700), cycle(7700, 1000, 4700, doubts=("x",))]

    found = figures(done, 1, was_absent=True, configured_residual_mib=0)

    assert (found.footprint_mib, found.residual_mib, found.doubts) == (4000, None, ())
    assert figures(done, 2, was_absent=True, configured_residual_mib=0).doubts == ("x",)


async def test_an_interruption_is_heard_while_it_stops_looking(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, told_to_stop, may_stop = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def ask(*_: Any, **__: Any) -> None:
        try:
            asked.set()
            await asyncio.get_running_loop().create_future()
        finally:
            told_to_stop.set()
            await may_stop.wait()

    monkeypatch.setattr(Client, "ask", ask)
    bench = Bench(Client.at("http://localhost"), "tts", settle_s=0.1, timeout_s=1.0)

    async def measure() -> None:
        async with bench._watching(_Watch("tts")):
            await asked.wait()

    measuring = asyncio.create_task(measure())
    await told_to_stop.wait()
    measuring.cancel()
    may_stop.set()
    await asyncio.wait([measuring])

    assert measuring.cancelled()
