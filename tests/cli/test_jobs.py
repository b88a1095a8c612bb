"""Looking at jobs, and taking one out."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

Mgpu = Callable[..., Awaitable[Any]]
Answer = Callable[[web.Request], Awaitable[web.Response]]
StartBroker = Callable[[Answer], Awaitable[TestServer]]

RUNS: dict[str, Any] = {
    "job": "a1", "consumer": "tts", "state": "running", "priority": 0, "position": None,
    "waited_s": 1.5, "eta_s": None, "ran_s": 90.0,
}  # fmt: skip
WAITS: dict[str, Any] = {
    "job": "b2", "consumer": "stt", "state": "queued", "priority": 5, "position": 1,
    "waited_s": 0.2, "eta_s": 12.0, "ran_s": None,
}  # fmt: skip
LATER = WAITS | {"job": "c3", "position": 2, "eta_s": None}


@pytest.fixture
async def broker(start_broker: StartBroker) -> tuple[str, list[str]]:
    """A broker with three jobs: its address, and what it was asked."""
    asked: list[str] = []
    known = {job["job"]: job for job in (RUNS, WAITS, LATER)}

    async def answer(request: web.Request) -> web.Response:
        asked.append(f"{request.method} {request.raw_path}")
        name = request.path.removeprefix("/api/jobs").removeprefix("/")
        if not name:
            return web.json_response({"jobs": list(known.values())})
        if name not in known:
            problem = {"title": "Unknown job", "detail": f"There is no job {name!r}."}
            kind = "application/problem+json"
            return web.Response(status=404, text=json.dumps(problem), content_type=kind)
        return web.json_response(known[name])

    server = await start_broker(answer)
    return str(server.make_url("")), asked


async def test_all_are_listed_with_what_each_can_expect(
    mgpu: Mgpu, broker: tuple[str, list[str]]
) -> None:
    url, asked = broker
    result = await mgpu("jobs", "--url", url)

    lines = [line.split() for line in result.stdout.splitlines()[1:]]
    assert lines == [
        ["runs", "a1", "tts", "0", "1.5", "s", "for", "1", "min", "30", "s"],
        ["1", "b2", "stt", "5", "0.2", "s", "begins", "in", "about", "12.0", "s"],
        ["2", "c3", "stt", "5", "0.2", "s", "begins", "when?"],
    ]
    assert asked == ["GET /api/jobs"]


@pytest.mark.parametrize(
    ("job", "lines"),
    [
        ("a1", ["a1 of tts is running: for 1 min 30 s", "priority 0, waited 1.5 s"]),
        (
            "b2",
            [
                "b2 of stt is queued at place 1: begins in about 12.0 s",
                "priority 5, waited 0.2 s",
            ],
        ),
    ],
)
async def test_one_is_shown(
    mgpu: Mgpu, broker: tuple[str, list[str]], job: str, lines: list[str]
) -> None:
    url, asked = broker
    result = await mgpu("jobs", "show", job, "--url", url)
    assert result.stdout.splitlines() == lines
    assert asked == [f"GET /api/jobs/{job}"]


@pytest.mark.parametrize(
    ("job", "line"),
    [("a1", "a1 of tts was stopped"), ("b2", "b2 of stt was taken out of the queue")],
)
async def test_one_is_taken_out(
    mgpu: Mgpu, broker: tuple[str, list[str]], job: str, line: str
) -> None:
    url, asked = broker
    result = await mgpu("jobs", "cancel", job, "--url", url)
    assert result.stdout == f"{line}\n"
    assert asked == [f"DELETE /api/jobs/{job}"]


async def test_json_is_the_brokers_own_document(mgpu: Mgpu, broker: tuple[str, list[str]]) -> None:
    url, _ = broker
    assert json.loads((await mgpu("jobs", "show", "b2", "--json", "--url", url)).stdout) == WAITS


async def test_one_that_is_not_there_is_what_the_broker_says(
    mgpu: Mgpu, broker: tuple[str, list[str]]
) -> None:
    url, asked = broker
    result = await mgpu("jobs", "cancel", "a/../b", "--url", url)
    assert result.exit_code == 1
    assert "There is no job 'a/../b'." in result.stderr
    assert asked == ["DELETE /api/jobs/a%2F..%2Fb"]


async def test_which_job_must_be_said(mgpu: Mgpu) -> None:
    result = await mgpu("jobs", "cancel")
    assert result.exit_code == 2
    assert "which job?" in result.stderr


async def test_no_jobs_are_said_to_be_none(mgpu: Mgpu, start_broker: StartBroker) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.json_response({"jobs": []})

    server = await start_broker(answer)
    result = await mgpu("jobs", "--url", str(server.make_url("")))
    assert result.stdout == "No job runs or waits.\n"


async def test_what_is_no_broker_is_not_taken_for_one(
    mgpu: Mgpu, start_broker: StartBroker
) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.json_response([])

    server = await start_broker(answer)
    result = await mgpu("jobs", "--url", str(server.make_url("")))
    assert result.exit_code == 3
