"""A preset of the user's, through a real broker: what it says holds for who names it."""

from __future__ import annotations

import asyncio

from tests.acceptance.conftest import Machine, job
from tests.support.standin_consumer import StandinConsumer

PRESET = """\
service: Stand-in
ports: [1]
consumer:
  load: {path: /load}
  unload: {path: /unload, until_absent: true}
  health: {path: /health}
  resident: {path: /status, when: loaded}
  busy: {path: /status, when: busy}
  deny: [POST /load, POST /unload]
"""


async def presets_only(machine: Machine, name: str, *, resident: bool = False) -> StandinConsumer:
    """A consumer of whom broker.yaml says no more than its address, its size and its preset."""
    (machine.directory / "presets").mkdir(exist_ok=True)
    (machine.directory / "presets" / "standin.yaml").write_text(PRESET)
    service = await machine.consumer(name, 14000, resident=resident)
    own = {"url": service.url, "footprint_mib": 14000, "preset": "standin"}
    service.config = lambda **_: own  # type: ignore[method-assign]
    return service


async def test_two_services_that_do_not_fit_together_take_turns(machine: Machine) -> None:
    a = await presets_only(machine, "a", resident=True)
    b = await presets_only(machine, "b")
    broker = await machine.broker()

    for name in ("a", "b", "a"):
        assert await job(broker, name) == 200

    assert (a.unloads, b.unloads) == (1, 1)
    assert (a.loads, b.loads) == (1, 1)


async def test_one_that_somebody_uses_directly_is_not_evicted_until_that_is_over(
    machine: Machine,
) -> None:
    a = await presets_only(machine, "a", resident=True)
    a.busy = True
    await presets_only(machine, "b")
    broker = await machine.broker()
    await broker.until("c['a']['busy']")

    waiting = asyncio.create_task(job(broker, "b"))
    await broker.until("c['b']['queued'] == 1")
    assert (a.unloads, (await broker.consumer("a"))["state"]) == (0, "resident")
    a.busy = False

    assert await waiting == 200
    assert a.unloads == 1


async def test_what_it_denies_is_forbidden_to_clients_and_not_to_the_broker(
    machine: Machine,
) -> None:
    a = await presets_only(machine, "a", resident=True)
    broker = await machine.broker()

    async with broker.session.post(f"{broker.url}/consumers/a/unload") as response:
        assert response.status == 403
        assert (await response.json())["type"] == "urn:mgpu:forbidden"
    assert a.unloads == 0

    await broker.unload("a")
    assert a.unloads == 1
