"""``mgpu init``: a broker.yaml for the services that run on this machine."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.table import Table
from rich.text import Text

from mgpu.cli import output
from mgpu.cli.options import DEFAULT_CONFIG
from mgpu.config import presets
from mgpu.config.load import load
from mgpu.config.problems import InvalidConfig, Problem
from mgpu.consumers.container import socket_path
from mgpu.core.model import GpuReading
from mgpu.discovery.homes import Home
from mgpu.discovery.listeners import listeners
from mgpu.discovery.proposal import MAX_STRANGERS, Proposal, describe
from mgpu.discovery.survey import Service, Survey, survey
from mgpu.errors import ConfigError, GpuUnhealthy
from mgpu.gpu.nvml import NvmlReader
from mgpu.gpu.thread import ThreadedProbe


def init(
    *,
    config: Annotated[
        Path, typer.Option("-o", "--output", help="The file to write.")
    ] = DEFAULT_CONFIG,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file if it is there.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Write without asking.")] = False,
) -> None:
    """Find the known services of this machine and propose a configuration for them.

    Ports that somebody listens at are asked with harmless GET requests, on this machine only.
    """
    if config.exists() and not force:
        raise ConfigError(f"{config}: is there already; --force replaces it, -o names another file")
    if not config.parent.is_dir():
        raise ConfigError(f"{config}: there is no folder {config.parent}")
    try:
        listening = listeners()
    except psutil.Error as error:
        raise ConfigError(f"cannot see what listens on this machine: {error}") from error
    with output.console(stderr=True).status(f"Asking {len(listening)} ports ..."):
        found = asyncio.run(survey(listening, config.parent, socket_path(None)))
        gpus, trouble = asyncio.run(_gpus())
    _say_gpus(gpus, trouble)
    if not found.services:
        _say_nothing_found(found, config.parent)
        raise typer.Exit(1)
    proposal = Proposal(found, gpus, trouble, config)
    output.console().print(_table(found, proposal))
    _say_others(found)
    if not yes and sys.stdin.isatty() and sys.stdout.isatty():
        typer.confirm(f"Write {config}?", default=True, abort=True)
    unfinished = write(config, proposal.text(), force=force)
    output.say(f"wrote {config}")
    for problem in unfinished:
        output.say(f"To be filled in: {problem}", "yellow")
    first = "fill that in" if unfinished else "look through it"
    output.say(f"Next: {first}, then mgpu check -c {config} and mgpu serve -c {config}")


def write(path: Path, text: str, *, force: bool) -> tuple[Problem, ...]:
    """Put a valid configuration into place at once, or leave everything as it was.

    Returns what is still to be filled in: until then, it is not valid. Raises ``ConfigError`` when
    it cannot be written, is not valid in any other way, or when there is a file that was not to be
    replaced.
    """
    try:
        handle, name = tempfile.mkstemp(".yaml", f".{path.stem}-", path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            unfinished = _unfinished(temporary)
            temporary.chmod(0o644)
            if force:
                temporary.replace(path)
            else:
                os.link(temporary, path)  # fails when somebody was faster
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
    except InvalidConfig:
        raise
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    return tuple(replace(problem, file=str(path)) for problem in unfinished)


def _unfinished(path: Path) -> tuple[Problem, ...]:
    """What of a configuration is to be filled in; raise ``InvalidConfig`` when more is wrong."""
    try:
        load(path)
    except InvalidConfig as error:
        if all(problem.unfinished for problem in error.problems):
            return error.problems
        raise
    return ()


async def _gpus() -> tuple[tuple[GpuReading, ...], str]:
    """The GPUs, or why there are none."""
    probe = ThreadedProbe(NvmlReader("all"))
    try:
        return await probe.read(), ""
    except (GpuUnhealthy, ConfigError) as error:
        return (), str(error)
    finally:
        await probe.close()


def _say_gpus(gpus: tuple[GpuReading, ...], trouble: str) -> None:
    for gpu in gpus:
        output.say(f"GPU {gpu.index}: {gpu.error or f'{gpu.name}, {gpu.total_mib} MiB'}")
    if not gpus:
        output.say(f"no NVIDIA GPU: {trouble or 'there is none'}", "yellow")


def _say_nothing_found(found: Survey, folder: Path) -> None:
    known = [presets.find(name, folder).preset for name in presets.names(folder)]
    services = ", ".join(each.service for each in known if each.fingerprint is not None)
    output.say(
        f"No service that is known answers at any of the {found.asked} ports that something "
        "listens at; nothing was written."
    )
    output.say(f"Looked for: {services}")
    _say_others(found)
    output.say(
        "Next: start your services and run mgpu init again, or write broker.yaml by hand: "
        "a preset (docs/presets.md) and an address are enough for a known service"
    )


def _say_others(found: Survey) -> None:
    for stranger in found.strangers[:MAX_STRANGERS]:
        output.say(describe(stranger))
    if len(found.strangers) > MAX_STRANGERS:
        output.say(f"and {len(found.strangers) - MAX_STRANGERS} more that are not known")
    for url, owner in found.parts:
        output.say(f"{url} was started by {owner} and belongs to it")
    for port in found.brokers:
        output.say(f"port {port} is a running broker's")
    if found.left_out:
        output.say(f"{len(found.left_out)} ports more were not asked", "yellow")
    if found.problem:
        output.say(found.problem, "yellow")


def _table(found: Survey, proposal: Proposal) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("consumer", "service", "at", "runs in", "for clients"):
        table.add_column(column, overflow="fold")
    for service in found.services:
        clients = f"127.0.0.1:{proposal.ports[service.name]}" if service.is_clear else ""
        cells = (service.name if service.is_clear else "", _kinds(service), service.url)
        row = (*cells, _home(service.home), clients)
        table.add_row(*(Text(output.plain(cell)) for cell in row))
    return table


def _kinds(service: Service) -> str:
    kinds = " or ".join(each.preset.service for each in service.presets)
    return kinds if service.is_clear else f"{kinds}: not clear which"


def _home(home: Home) -> str:
    if home.unit is not None:
        return f"{'user ' if home.scope == 'user' else ''}unit {home.unit}"
    return f"container {home.container}" if home.container is not None else "not known"
