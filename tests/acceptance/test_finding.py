"""``mgpu init`` beside a running broker: the ports of its consumers are no new services."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpu.discovery.listeners import Listener
from mgpu.discovery.survey import survey
from tests.support.broker_process import serving
from tests.support.servers import free_port
from tests.support.services.images import ComfyUi, InvokeAi


@pytest.mark.parametrize("kind", [ComfyUi, InvokeAi], ids=lambda kind: kind.preset)
async def test_the_ports_of_a_broker_whose_process_is_hidden_are_its_own(
    tmp_path: Path, kind: type[ComfyUi | InvokeAi]
) -> None:
    service = kind()
    await service.start()
    own = free_port()
    consumer = {"url": service.url, "preset": kind.preset, "listen": f"127.0.0.1:{own}"}
    config = {"gpu": {"backend": "simulated"}, "consumers": {"x": consumer}}
    try:
        async with serving(tmp_path, config) as broker:
            ports = (int(broker.url.rpartition(":")[2]), own)
            listening = [Listener(port, ("127.0.0.1",), exposed=False) for port in ports]
            found = await survey(listening, tmp_path, tmp_path / "no-engine.sock")
            status = await broker.status()
    finally:
        await service.stop()

    assert found.services == ()
    assert own in found.brokers
    assert (status["loads"], status["consumers"]["x"]["last_used_s"]) == (0, None)
