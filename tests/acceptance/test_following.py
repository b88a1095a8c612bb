"""What a client sees that follows the broker live."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import aiohttp

from tests.acceptance.conftest import Machine, job
from tests.support.broker_process import BrokerProcess

Event = tuple[str, Any]
FOR_EVER = aiohttp.ClientTimeout(total=None)


class Follower:
    """Reads the stream of events until something comes."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def until(self, true: Callable[[str, Any], bool], within_s: float = 10.0) -> Event:
        kind = ""
        async with asyncio.timeout(within_s):
            while True:
                line = (await self._response.content.readline()).decode().rstrip("\n")
                if line.startswith("event: "):
                    kind = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    data = json.loads(line.removeprefix("data: "))
                    if true(kind, data):
                        return kind, data


async def test_those_who_wait_are_told_their_position_and_when_they_begin(
    machine: Machine,
) -> None:
    target = await machine.consumer("target", 8000, resident=True, job_s=0.05)
    broker = await machine.broker()
    assert await job(broker, "target") == 200
    target.job_gate.close()
    running = asyncio.create_task(job(broker, "target"))
    await target.job_gate.reached(2)

    async with broker.session.get(f"{broker.url}/api/events", timeout=FOR_EVER) as response:
        follower = Follower(response)
        kind, status = await follower.until(lambda _kind, _data: True)
        assert kind == "status"
        assert status["consumers"]["target"]["running"] == 1
        second = asyncio.create_task(job(broker, "target"))
        third = asyncio.create_task(job(broker, "target"))
        _, news = await follower.until(lambda k, d: k == "queue" and len(d["queue"]) == 2)
        assert [waiter["position"] for waiter in news["queue"]] == [1, 2]
        etas_s = [waiter["eta_s"] for waiter in news["queue"]]
        assert 0 <= etas_s[0] < etas_s[1]

        name = news["queue"][1]["job"]
        async with broker.session.delete(f"{broker.url}/api/jobs/{name}") as answer:
            assert (await answer.json())["position"] == 2
        await follower.until(lambda k, d: k == "job" and (d["job"], d["state"]) == (name, "cancelled"))  # fmt: skip  # noqa: E501
        target.job_gate.open()
        await follower.until(lambda k, d: k == "queue" and not d["queue"])

    assert sorted(await asyncio.gather(running, second, third)) == [200, 200, 409]


async def test_a_broker_with_followers_stops_at_once_and_lets_them_go(machine: Machine) -> None:
    await machine.consumer("target", 8000)
    broker = await machine.broker()
    async with broker.session.get(f"{broker.url}/api/events", timeout=FOR_EVER) as response:
        follower = Follower(response)
        await follower.until(lambda kind, _: kind == "status")
        await load(broker, "target")
        steps = [await follower.until(lambda kind, _: kind == "state") for _ in range(2)]
        assert [step[1]["new"] for step in steps] == ["loading", "resident"]
        assert await broker.stop(within_s=1.9) == 0
        await response.content.read()


async def load(broker: BrokerProcess, name: str) -> None:
    async with broker.session.post(f"{broker.url}/api/consumers/{name}/load") as response:
        assert response.status == 200
