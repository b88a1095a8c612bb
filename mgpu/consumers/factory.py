"""From a consumer's configuration to the controller that its ways of control need."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence

import aiohttp

from mgpu.config import gpu_placeholders
from mgpu.config.model import ConsumerConfig
from mgpu.consumers.container import Container, socket_path
from mgpu.consumers.http import HttpController
from mgpu.consumers.placed import PlacedController
from mgpu.consumers.program import Program
from mgpu.consumers.supervised import SupervisedController, Supervisor
from mgpu.consumers.systemd import SystemdUnit
from mgpu.ports import ConsumerController, Placement


def make_controller(  # noqa: PLR0913 - what the ways of control need of the outside
    name: str,
    config: ConsumerConfig,
    session: aiohttp.ClientSession,
    *,
    systemctl: Sequence[str] = ("systemctl",),
    died: Callable[[], None] = lambda: None,
    places: Callable[[], Sequence[Placement]] = tuple,
    unloaded: MutableMapping[str, str] | None = None,
    listener: Callable[[], str] = str,
) -> ConsumerController:
    """Choose by what is configured: endpoints, a unit, container or command, both, or neither.

    With neither it is only probed, and so is a consumer that manages its VRAM itself, whatever else
    is configured. ``session`` is best made by ``wire.control_session``, and stays the caller's.
    ``died`` is called when a program that the broker has started ends by itself. ``places`` says
    where the consumer may live, where it is taken to live first: one with placeholders has a
    controller for each. ``unloaded`` and ``listener`` are as for ``HttpController``. Raises
    ``ConfigError`` for a unit name that cannot be one, and for an engine that is no Unix socket.
    """

    def controller(filled: ConsumerConfig) -> ConsumerController:
        supervisor = _supervisor(name, filled, systemctl, died)
        if supervisor is None:
            return HttpController(name, filled, session, unloaded, listener)
        http = HttpController(name, filled, session, unloaded)
        return SupervisedController(name, filled, http, supervisor)

    if config.vram_managed:
        probed = config.model_copy(update={"load": None, "unload": None})
        return HttpController(name, probed, session)
    if gpu_placeholders.are_in(config):
        return PlacedController(name, config, controller, places)
    return controller(config)


def _supervisor(
    name: str, config: ConsumerConfig, systemctl: Sequence[str], died: Callable[[], None]
) -> Supervisor | None:
    if config.systemd_unit is not None:
        return SystemdUnit(config.systemd_unit, config.systemd_scope, systemctl=systemctl)
    if config.container is not None:
        socket = socket_path(config.container_socket)
        return Container(config.container, socket, grace_s=config.stop_grace_s)
    if config.command is not None:
        return Program(name, config, died)
    return None
