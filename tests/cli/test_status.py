import asyncio
import json
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

Mgpu = Callable[..., Awaitable[Any]]
Answer = Callable[[web.Request], Awaitable[web.Response]]
StartBroker = Callable[[Answer], Awaitable[TestServer]]

STATUS = {
    "gpus": [
        {
            "index": 0,
            "uuid": "GPU-0",
            "name": "Test Card",
            "healthy": True,
            "total_mib": 24576,
            "free_mib": 20000,
            "reserved_mib": 0,
            "foreign_mib": 512,
            "lock": {"consumer": "tts", "jobs": ["j1"]},
        }
    ],
    "consumers": {
        "tts": {
            "state": "resident",
            "healthy": True,
            "footprint_mib": 2400,
            "measured_mib": None,
            "running": 1,
            "queued": 1,
            "last_used_s": 3.5,
            "pinned": False,
        }
    },
    "queue": [
        {"job": "j2", "consumer": "tts", "position": 1, "waited_s": 0.5, "eta_s": None},
    ],
    "paused": False,
    "evictions": 0,
    "loads": 1,
}


async def _answer(request: web.Request) -> web.Response:
    assert request.path == "/api/status"
    return web.json_response(STATUS)


async def test_gpus_consumers_and_queue_are_shown(mgpu: Mgpu, start_broker: StartBroker) -> None:
    server = await start_broker(_answer)

    result = await mgpu("status", "--url", str(server.make_url("")))

    assert result.exit_code == 0
    for word in ("Test Card", "tts", "resident"):
        assert word in result.stdout
    assert "\x1b" not in result.stdout


async def test_json_is_the_broker_s_own_document_in_one_line(
    mgpu: Mgpu, start_broker: StartBroker
) -> None:
    server = await start_broker(_answer)

    result = await mgpu("status", "--json", "--url", str(server.make_url("")))

    assert result.stdout.count("\n") == 1
    assert json.loads(result.stdout) == STATUS


async def test_watching_goes_on_until_interrupted_and_that_is_no_failure(
    start_broker: StartBroker,
) -> None:
    server = await start_broker(_answer)
    command = ("status", "--watch", "--json", "--url", str(server.make_url("")))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mgpu", *command, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(40):
            lines = [await process.stdout.readline() for _ in range(2)]
            process.send_signal(signal.SIGINT)
            rest = await process.stdout.read()
            code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert [json.loads(line) for line in lines] == [STATUS, STATUS]
    assert b"Traceback" not in rest
    assert code == 0
