from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from mgpu.config.model import ConsumerConfig
from mgpu.consumers import make_controller
from mgpu.consumers.http import HttpController
from mgpu.consumers.supervised import SupervisedController
from mgpu.errors import ConfigError
from mgpu.ports import Placement
from tests.support.servers import BadServer, free_port, serving


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({}, HttpController),
        ({"load": {"path": "/load"}, "unload": {"path": "/unload"}}, HttpController),
        ({"systemd_unit": "tts"}, SupervisedController),
        ({"systemd_unit": "tts", "unload": {"path": "/unload"}}, SupervisedController),
        ({"container": "tts"}, SupervisedController),
        ({"command": "tts --serve"}, SupervisedController),
    ],
)
async def test_what_is_configured_decides_the_way_of_control(
    session: aiohttp.ClientSession, config: dict[str, Any], kind: type
) -> None:
    made = make_controller("tts", ConsumerConfig(url="http://127.0.0.1:1", **config), session)
    assert type(made) is kind


async def test_a_consumer_that_manages_its_vram_is_only_probed(
    session: aiohttp.ClientSession,
) -> None:
    async with serving(BadServer()) as server:
        config = ConsumerConfig.model_validate(
            {
                "url": server.url,
                "vram_managed": True,
                "load": {"path": "/load"},
                "unload": {"path": "/unload"},
                "systemd_unit": "tts",
            }
        )
        made = make_controller("tts", config, session, systemctl=("/nowhere/systemctl",))
        await made.load(Placement())
        await made.unload()
        assert server.requests == 0
        assert (await made.probe()).reachable


async def test_with_nothing_configured_it_is_only_probed(session: aiohttp.ClientSession) -> None:
    config = ConsumerConfig(url=f"http://127.0.0.1:{free_port()}")
    made = make_controller("tts", config, session)
    await made.load(Placement())
    await made.unload()
    assert not (await made.probe()).reachable


async def test_an_engine_that_is_not_on_this_machine_is_an_error(
    session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://10.0.0.1:2375")
    config = ConsumerConfig(url="http://127.0.0.1:1", container="tts")
    with pytest.raises(ConfigError, match=r"DOCKER_HOST: 'tcp://10.0.0.1:2375' is not a Unix"):
        make_controller("tts", config, session)


async def test_a_unit_name_that_cannot_be_one_is_an_error(session: aiohttp.ClientSession) -> None:
    config = ConsumerConfig(url="http://127.0.0.1:1", systemd_unit="--force")
    with pytest.raises(ConfigError, match="systemd_unit: '--force'"):
        make_controller("tts", config, session)
