"""``mgpu measure``: what it asks of a broker, and what it refuses. Figures: ``acceptance``."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Awaitable, Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from rich.console import Console

from mgpu.cli import output
from mgpu.cli.client import Client
from mgpu.cli.cycles import MORE_TRIES, Bench, _Watch, obstacles
from mgpu.cli.failures import BrokerSaidNo
from tests.support.comfyui import picture
from tests.support.servers import free_port

Mgpu = Callable[..., Awaitable[Any]]
Answer = Callable[[web.Request], Awaitable[web.Response]]
StartBroker = Callable[[Answer], Awaitable[TestServer]]
QUICK = ("--settle", "0.1", "--cycles", "1")
GRAPH = picture()


def consumer(**keys: Any) -> dict[str, Any]:
    return {"state": "absent", "running": 0, "pinned": False, "held_mib": None} | keys


class FakeBroker:
    """One consumer, which takes nothing unless it is told to."""

    def __init__(self, *, takes_mib: int = 0, **tts: Any) -> None:
        self.asked: list[str] = []
        self.bodies: list[tuple[bytes, str]] = []
        self.answers_wanted: list[str | None] = []
        self.refuses: dict[str, str] = {}
        """What is said to those who ask for it."""
        self.takes_mib = takes_mib
        self.job_status = 200
        self.answers_jobs = True
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
            self.answers_wanted.append(request.headers.get("X-MGPU-Answer"))
            if not self.answers_jobs:
                await asyncio.get_running_loop().create_future()
            return web.Response(status=self.job_status, body=b"\x00\xff" * 1000)
        verb = request.path.rpartition("/")[2]
        if verb in self.refuses:
            problem = {"title": "Refused", "detail": self.refuses[verb]}
            return web.json_response(problem, status=502, content_type="application/problem+json")
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
        "POST /api/consumers/tts/unload",
        "POST /api/consumers/tts/load",
        "POST /consumers/tts/tts?voice=a%20b",
        "POST /api/consumers/tts/unload",
        "POST /api/consumers/tts/unload",
    ]
    assert broker.bodies == [(b'{"text": "hi"}', "application/json")]
    assert broker.answers_wanted == ["result"], "an answer before the work is done measures nothing"
    assert "2000 MiB" in result.stdout


async def test_a_body_may_come_from_a_file(
    mgpu: Mgpu, start_broker: StartBroker, tmp_path: Path
) -> None:
    broker = FakeBroker(takes_mib=2000)
    wav = tmp_path / "a.wav"
    write(wav, "RIFF")

    await run(mgpu, start_broker, broker, "tts", "--request", "POST /stt", "--data", str(wav))

    assert broker.bodies == [(b"RIFF", "application/octet-stream")]


async def test_a_body_may_be_longer_than_any_file_name(
    mgpu: Mgpu, start_broker: StartBroker
) -> None:
    broker = FakeBroker(takes_mib=2000)
    text = json.dumps({"text": "a" * 5000})

    result = await run(mgpu, start_broker, broker, "tts", "--request", "POST /tts", "--data", text)

    assert result.exit_code == 0, result.output
    assert broker.bodies == [(text.encode(), "application/json")]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("./workflow.json", "there is no file ./workflow.json"),
        ('{"nodes": [], "links": []}', 'save it with "Export (API)"'),
    ],
    ids=["a file that is not there", "a workflow as the editor saves it"],
)
async def test_data_that_cannot_be_meant_is_bad_usage_and_nothing_is_sent(
    mgpu: Mgpu, start_broker: StartBroker, data: str, said: str
) -> None:
    broker = FakeBroker()

    job = ("--request", "POST /prompt", "--data", data)
    result = await run(mgpu, start_broker, broker, "tts", *job)

    assert result.exit_code == 2
    assert said in result.stderr
    assert broker.asked == []


@pytest.mark.parametrize(
    ("path", "document", "sent"),
    [
        ("/prompt", GRAPH, {"prompt": GRAPH}),
        ("/api/prompt?x=1", GRAPH, {"prompt": GRAPH}),
        ("/prompt", {"prompt": GRAPH, "client_id": "me"}, {"prompt": GRAPH, "client_id": "me"}),
        ("/prompt", {}, {}),
        ("/elsewhere", GRAPH, GRAPH),
    ],
)
async def test_a_workflow_alone_becomes_a_prompt_where_prompts_go(
    mgpu: Mgpu, start_broker: StartBroker, path: str, document: Any, sent: Any
) -> None:
    broker = FakeBroker(takes_mib=2000)

    job = ("--request", f"POST {path}", "--data", json.dumps(document))
    result = await run(mgpu, start_broker, broker, "tts", *job)

    assert result.exit_code == 0, result.output
    assert [(json.loads(body), kind) for body, kind in broker.bodies] == [
        (sent, "application/json")
    ]


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
    assert "GPU 0: no measurements; mgpu status says why" in result.stderr


async def test_where_no_gpu_can_be_read_nothing_is_measured(
    mgpu: Mgpu, start_broker: StartBroker
) -> None:
    broker = FakeBroker()
    broker.status["gpus"] = []

    result = await run(mgpu, start_broker, broker, "tts")

    assert result.exit_code == 1
    assert "no GPU can be read, so nothing can be measured: see mgpu status" in result.stderr


async def test_one_that_fails_its_job_is_unloaded(mgpu: Mgpu, start_broker: StartBroker) -> None:
    broker = FakeBroker()
    broker.job_status = 500

    result = await run(mgpu, start_broker, broker, "tts", "--request", "POST /tts")

    assert result.exit_code == 1
    assert "the job failed with HTTP 500" in result.stderr
    assert broker.asked[-1] == "POST /api/consumers/tts/unload"


async def test_one_that_cannot_be_unloaded_is_not_loaded(
    mgpu: Mgpu, start_broker: StartBroker
) -> None:
    broker = FakeBroker()
    broker.refuses = {"unload": "tts has no way to be unloaded"}

    result = await run(mgpu, start_broker, broker, "tts")

    assert result.exit_code == 1
    assert "tts has no way to be unloaded" in result.stderr
    assert "POST /api/consumers/tts/load" not in broker.asked


async def test_why_it_failed_is_said_also_when_it_cannot_be_left_as_it_was(
    mgpu: Mgpu, start_broker: StartBroker
) -> None:
    broker = FakeBroker(state="resident")
    broker.refuses = {"load": "no weights"}
    broker.status["consumers"]["tts"]["pinned"] = True

    result = await run(mgpu, start_broker, broker, "tts", "--force")

    assert result.exit_code == 1
    said = "Refused: no weights; and tts could not be left as it was found: Refused: no weights"
    assert said in result.stderr
    assert broker.asked[-1] == "POST /api/consumers/tts/pin", "what can be restored is"


async def test_a_job_that_takes_too_long_is_named_and_ends_it(
    mgpu: Mgpu, start_broker: StartBroker
) -> None:
    broker = FakeBroker()
    broker.answers_jobs = False

    result = await run(mgpu, start_broker, broker, "tts", "--request", "POST /tts", "--wait", "0.5")

    assert result.exit_code == 3
    assert "the job took longer than 0.5 s; --wait gives it more" in result.stderr
    assert broker.asked[-1] == "POST /api/consumers/tts/unload"


@pytest.mark.parametrize(("file_says", "job_timeout_s"), [("", 900.0), ("3600", 3660.0)])
async def test_a_job_may_take_as_long_as_the_broker_lets_it(
    mgpu: Mgpu, monkeypatch: pytest.MonkeyPatch, file: Path, file_says: str, job_timeout_s: float
) -> None:
    benches: list[Bench] = []

    async def run_cycles(bench: Bench, *_: Any, **__: Any) -> Any:
        benches.append(bench)
        raise BrokerSaidNo("enough")

    monkeypatch.setattr("mgpu.cli.measure.run_cycles", run_cycles)
    says = f", job_timeout_s: {file_says}" if file_says else ""
    write(file, f"consumers:\n  tts: {{url: http://127.0.0.1:1{says}}}\n")

    await mgpu("measure", "tts", "-c", str(file))

    (bench,) = benches
    assert (bench.timeout_s, bench.job_timeout_s) == (900.0, job_timeout_s)
    await mgpu("measure", "tts", "-c", str(file), "--wait", "5")
    assert (benches[1].timeout_s, benches[1].job_timeout_s) == (5.0, 5.0)


async def test_at_a_terminal_each_step_is_shown_with_how_much_is_done(
    mgpu: Mgpu, start_broker: StartBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = terminal(monkeypatch)

    job = ("--request", "POST /tts")
    result = await run(mgpu, start_broker, FakeBroker(takes_mib=2000), "tts", *job)

    assert result.exit_code == 0, result.output
    assert steps_in(drawn) == [
        ("unloading", 0),
        ("waiting for the memory to stand still", 17),
        ("loading", 33),
        ("computing", 50),
        ("unloading", 67),
        ("leaving it as it was found", 83),
    ]


async def test_cycles_that_are_repeated_are_never_shown_as_done_before_they_are(
    mgpu: Mgpu, start_broker: StartBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = terminal(monkeypatch)

    class Besieged(FakeBroker):
        async def answer(self, request: web.Request) -> web.Response:
            answer = await super().answer(request)
            if request.path.endswith("/unload"):
                self.status["gpus"][0]["free_mib"] -= 100 * len(self.asked)
            return answer

    await run(mgpu, start_broker, Besieged(takes_mib=2000, state="resident"), "tts")

    assert "doubtful: somebody else took" in drawn.getvalue()
    shown = steps_in(drawn)
    assert len(shown) == 1 + (1 + MORE_TRIES) * 3 + 1
    assert shown[-1] == ("leaving it as it was found", 93)
    assert max(percent for _, percent in shown) < 100


async def test_elsewhere_no_bar_is_drawn(mgpu: Mgpu, start_broker: StartBroker) -> None:
    result = await run(mgpu, start_broker, FakeBroker(takes_mib=2000), "tts")

    assert result.exit_code == 0, result.output
    assert not result.stderr.strip()


def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is drawn on standard error, as on a terminal without colours."""
    drawn = io.StringIO()
    piped = output.console

    def console(*, stderr: bool = False) -> Console:
        if not stderr:
            return piped()
        return Console(file=drawn, force_terminal=True, color_system=None, width=100)

    monkeypatch.setattr(output, "console", console)
    return drawn


def steps_in(drawn: io.StringIO) -> list[tuple[str, int]]:
    """Each step and its percentage, once for however often it was drawn."""
    found = re.findall(r"tts: ([a-z ]+?) +[^a-z0-9]+ (\d+)% ", drawn.getvalue())
    return [(step, int(percent)) for (step, percent), _ in groupby(found)]


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
    bench = Bench(
        Client.at("http://localhost"), "tts", settle_s=0.1, timeout_s=1.0, job_timeout_s=1.0
    )

    async def measure() -> None:
        async with bench._watching(_Watch("tts")):
            await asked.wait()

    measuring = asyncio.create_task(measure())
    await told_to_stop.wait()
    measuring.cancel()
    may_stop.set()
    await asyncio.wait([measuring])

    assert measuring.cancelled()
