"""From a consumer's configuration to the controller that its ways of control need."""

from __future__ import annotations

from collections.abc import Sequence

import aiohttp

from mgpu.config.model import ConsumerConfig
from mgpu.consumers.http import HttpController
from mgpu.consumers.systemd import SystemdUnit
from mgpu.consumers.unit import UnitController
from mgpu.ports import ConsumerController


def make_controller(
    name: str,
    config: ConsumerConfig,
    session: aiohttp.ClientSession,
    *,
    systemctl: Sequence[str] = ("systemctl",),
) -> ConsumerController:
    """Choose by what is configured: endpoints, a unit, both, or neither (then it is only probed).

    ``session`` is best made by ``wire.control_session``, and stays the caller's. A consumer that
    manages its VRAM itself is only probed, whatever else is configured. Raises ``ConfigError`` for
    a unit name that cannot be one.
    """
    if config.vram_managed:
        probed = config.model_copy(update={"load": None, "unload": None})
        return HttpController(name, probed, session)
    http = HttpController(name, config, session)
    if config.systemd_unit is None:
        return http
    unit = SystemdUnit(config.systemd_unit, config.systemd_scope, systemctl=systemctl)
    return UnitController(name, config, http, unit)
