"""``mgpu check``: every problem of a configuration, or what it amounts to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from pathlib import Path

import typer
from rich.table import Table
from rich.text import Text

from mgpu.cli import output
from mgpu.cli.options import DEFAULT_CONFIG, ConfigFile
from mgpu.config.load import read
from mgpu.config.model import CallConfig, Config, ConsumerConfig
from mgpu.config.openai import PATHS
from mgpu.config.preset_merge import Filled
from mgpu.config.problems import InvalidConfig


def check(*, config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Validate the configuration; exit with 2 when anything is wrong."""
    try:
        valid = read(config)
    except InvalidConfig as error:
        for problem in error.problems:
            output.say(str(problem), "red")
        raise typer.Exit(2) from None
    _summarise(config, valid.config, valid.filled)


def _summarise(path: Path, config: Config, filled: Mapping[str, Filled]) -> None:
    output.say(
        f"{path} is valid: {_count(config.consumers, 'consumer')}, "
        f"{_count(config.routes, 'route')}, listening on {config.server.listen}"
    )
    if not config.consumers:
        output.say("Next: add a service that uses the GPU under consumers:")
        return
    console = output.console()
    console.print(_consumers(config))
    if config.routes:
        console.print(_routes(config))
    for name, each in filled.items():
        _explain(name, config.consumers[name], each)
    for doubt in _doubts(config):
        output.say(doubt, "yellow")
    output.say(f"Next: mgpu serve -c {path}")


def _doubts(config: Config) -> Iterator[str]:
    """What leads to OpenAI's routes of a consumer that has none, as far as is known."""
    for model, name in config.models.items():
        consumer = config.consumers[name]
        if not _lacks_openais(consumer):
            continue
        if not consumer.workflows:
            yield f"models.{model}: {name} has none of OpenAI's routes that its preset knows of"
        elif len(consumer.workflows) > 1 and model not in consumer.workflows:
            there_are = ", ".join(consumer.workflows)
            yield f"models.{model}: {name} has no workflow of that name, but {there_are}"
    for path, route in config.routes.items():
        lacks = _lacks_openais(config.consumers[route.consumer])
        if lacks and route.path in PATHS and route.workflow is None:
            yield f"routes.{path}: {route.consumer} has no {route.path} that is known of"


def _lacks_openais(consumer: ConsumerConfig) -> bool:
    return not consumer.paths and (consumer.preset is not None or bool(consumer.workflows))


def _explain(name: str, consumer: ConsumerConfig, filled: Filled) -> None:
    """What a preset has done for a consumer, and what it cannot do."""
    found = filled.found
    where = "" if found.built_in else f" of {found.path}"
    if found.hides_a_built_in_one:
        where += ", in the place of the one that comes with mgpu,"
    keys = ", ".join(filled.keys) or "nothing"
    output.say(f"{name}: preset {found.name}{where} fills in {keys}")
    if found.preset.needs:
        output.say(
            f"{name}: {found.preset.service} must have been started with {found.preset.needs}"
        )
    if not consumer.vram_managed and consumer.unload is None and not consumer.is_supervised:
        output.say(
            f"{name}: {found.preset.service} has no request that frees its VRAM: "
            "to be evicted it needs a systemd_unit, a container or a command",
            "yellow",
        )


def _count(things: Sized, what: str) -> str:
    return f"{len(things)} {what}{'' if len(things) == 1 else 's'}"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _consumers(config: Config) -> Table:
    table = _table("consumer", "footprint", "loaded by", "unloaded by")
    for name, consumer in config.consumers.items():
        footprint = f"{consumer.footprint_mib} MiB" if consumer.footprint_mib else "not given"
        if consumer.footprint_mib == "auto":
            footprint = "measured"
        cells = (name, footprint, _loaded_by(consumer), _unloaded_by(consumer))
        table.add_row(*map(Text, cells))
    return table


def _routes(config: Config) -> Table:
    table = _table("route", "goes to")
    for path, route in config.routes.items():
        table.add_row(Text(path), Text(f"{route.consumer} {route.path}"))
    return table


def _loaded_by(consumer: ConsumerConfig) -> str:
    if consumer.vram_managed:
        return "itself"
    ways = [_supervisor(consumer), _call(consumer.load)]
    return " and ".join(filter(None, ways)) or "its first job"


def _unloaded_by(consumer: ConsumerConfig) -> str:
    if consumer.vram_managed:
        return "itself"
    ways = [_call(consumer.unload), _supervisor(consumer)]
    return ", else ".join(filter(None, ways)) or "nobody: it is never evicted"


def _call(call: CallConfig | None) -> str:
    return f"{call.method} {call.path}" if call else ""


def _supervisor(consumer: ConsumerConfig) -> str:
    if consumer.command:
        return f"command {consumer.command[0]}"
    if consumer.container:
        return f"container {consumer.container}"
    return f"unit {consumer.systemd_unit}" if consumer.systemd_unit else ""
