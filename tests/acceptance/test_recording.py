"""What a broker has served, replayed."""

from __future__ import annotations

import pytest

from mgpu.simulation import traces
from tests.acceptance.conftest import Machine, job


async def test_a_broker_records_a_trace_that_can_be_replayed(machine: Machine) -> None:
    await machine.consumer("a", 14000)
    await machine.consumer("b", 14000)
    path = machine.directory / "trace.jsonl"
    broker = await machine.broker(jobs={"trace": str(path)})
    for name in ("a", "b", "a"):
        assert await job(broker, name, headers={"X-MGPU-Priority": "2"}) == 200
    assert await broker.stop() == 0

    recording = traces.read(path)

    assert [(a.consumer, a.priority) for a in recording.trace.arrivals] == [
        ("a", 2),
        ("b", 2),
        ("a", 2),
    ]
    assert recording.trace.total_mib == (24576,)
    assert recording.unknown == ()
    assert all(service.footprint_mib >= 14000 for service in recording.trace.services.values())


async def test_a_second_broker_that_cannot_listen_leaves_the_trace_alone(machine: Machine) -> None:
    await machine.consumer("a", 1000)
    jobs = {"trace": str(machine.directory / "trace.jsonl")}
    broker = await machine.broker(jobs=jobs)
    assert await job(broker, "a") == 200

    with pytest.raises(AssertionError, match="cannot listen on"):
        await machine.broker(jobs=jobs, server={"listen": broker.url.removeprefix("http://")})

    assert await job(broker, "a") == 200
    assert await broker.stop() == 0
    recording = traces.read(machine.directory / "trace.jsonl")
    assert [arrival.consumer for arrival in recording.trace.arrivals] == ["a", "a"]
    assert not (machine.directory / "trace.jsonl.1").exists()
