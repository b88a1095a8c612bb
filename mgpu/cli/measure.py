"""``mgpu measure NAME``: how much VRAM a consumer takes, keeps, and how long its loads last."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from mgpu.cli import output
from mgpu.cli.client import Client
from mgpu.cli.consumers import DEFAULT_WAIT_S, Name, Wait
from mgpu.cli.cycles import MORE_TRIES, Bench, Job
from mgpu.cli.cycles import measure as run_cycles
from mgpu.cli.failures import BrokerSaidNo
from mgpu.cli.figures import Cycle, Figures, figures
from mgpu.cli.options import DEFAULT_CONFIG, DEFAULT_URL, ConfigFile, Url
from mgpu.config.load import load
from mgpu.config.model import ConsumerConfig
from mgpu.config.problems import InvalidConfig, did_you_mean
from mgpu.config.rewrite import set_figures
from mgpu.errors import ConfigError

_METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")
_STEPS = 3  # of a cycle without a job


def measure(  # noqa: PLR0913 - the options of a command
    name: Name,
    *,
    cycles: Annotated[int, typer.Option("--cycles", min=1, max=100, help="How often.")] = 3,
    request: Annotated[
        str | None,
        typer.Option(
            "--request", help='A job for each cycle: "POST /path", with the path at the consumer.'
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="The job's body: a file's name, or the text itself."),
    ] = None,
    store: Annotated[
        bool, typer.Option("--store", help="Write footprint_mib and residual_mib into the file.")
    ] = False,
    config: ConfigFile = DEFAULT_CONFIG,
    force: Annotated[
        bool,
        typer.Option("--force", help="Even when others are disturbed, or the figures doubtful."),
    ] = False,
    settle: Annotated[
        float,
        typer.Option(
            "--settle",
            min=0.1,
            help="Seconds for which memory must stand still; more than gpu.sample_interval_s.",
        ),
    ] = 2.5,
    url: Url = DEFAULT_URL,
    wait: Wait = DEFAULT_WAIT_S,
) -> None:
    """Cycle a consumer through the running broker: unload, load, job, unload; show what it takes.

    Others may be evicted to make room. The consumer itself is left as it was found.
    """
    job = _job(request, data)
    given = _given(config, name, needed=store)
    bench = Bench(Client.at(url), name, settle, wait)
    with _progress(name, cycles * (_STEPS + (job is not None))) as advance:
        done, was_absent = asyncio.run(run_cycles(bench, cycles, job, force=force, advance=advance))
    residual_mib = given.residual_mib if given is not None else 0
    result = figures(done, cycles, was_absent=was_absent, configured_residual_mib=residual_mib)
    output.console().print(_table(done, result))
    _say(name, done, result, has_job=job is not None)
    if result.doubts and not force:
        raise BrokerSaidNo(
            f"doubtful: {'; '.join(result.doubts)}. Nothing was stored; measure when the GPU is "
            "left alone, or take the figures with --force"
        )
    if not store:
        return
    if result.footprint_mib <= 0:
        raise BrokerSaidNo(
            f"{name} took no memory, so nothing was stored; if its first job loads it, give one "
            'with --request "POST /path"'
        )
    _store(config, name, result)


def _job(request: str | None, data: str | None) -> Job | None:
    if request is None:
        if data is not None:
            raise typer.BadParameter("--data is the body of a --request")
        return None
    method, _, path = request.strip().partition(" ")
    path = path.strip()
    if method not in _METHODS or not path.startswith("/") or not path.isascii() or " " in path:
        raise typer.BadParameter(f'--request must be "METHOD /PATH", METHOD {", ".join(_METHODS)}')
    body = b""
    if data is not None:
        try:
            body = Path(data).read_bytes() if Path(data).is_file() else data.encode()
        except OSError as error:
            raise typer.BadParameter(f"--data: {data}: {error.strerror}") from error
    return Job(
        method, path, body, "application/json" if _is_json(body) else "application/octet-stream"
    )


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except ValueError:
        return False
    return True


def _given(path: Path, name: str, *, needed: bool) -> ConsumerConfig | None:
    """The consumer as it is configured; None where no file says it and none is needed."""
    try:
        consumers = load(path).consumers
    except InvalidConfig:
        if needed:
            raise
        return None
    if name in consumers:
        return consumers[name]
    if needed:
        hint = did_you_mean(name, consumers, what="consumers")
        raise ConfigError(f"{path}: there is no consumer {name}; {hint}")
    return None


@contextmanager
def _progress(name: str, steps: int) -> Iterator[Callable[[str], None]]:
    """Show where it is, at a terminal."""
    console = output.console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(output.plain(name), total=steps + 1)

        def advance(doing: str) -> None:
            progress.update(task, advance=1, description=output.plain(f"{name}: {doing}"))

        yield advance


def _table(done: list[Cycle], result: Figures) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("cycle")
    for column in ("footprint", "residual", "load", "job", "unload"):
        table.add_column(column, justify="right")
    table.add_column("")
    footprints = {id(cycle): footprint for cycle, footprint in result.counted}
    for number, cycle in enumerate(done, 1):
        table.add_row(
            str(number),
            _mib(footprints.get(id(cycle))),
            _mib(cycle.held_after_mib),
            *_times(cycle.load_s, cycle.job_s, cycle.unload_s),
            Text("; ".join(cycle.doubts), "yellow"),
        )
    table.add_row(
        "median",
        _mib(result.footprint_mib),
        _mib(result.residual_mib),
        *_times(result.load_s, result.job_s, result.unload_s),
        "",
        style="bold",
    )
    return table


def _mib(figure: int | None) -> str:
    return "-" if figure is None else f"{figure} MiB"


def _times(*seconds: float | None) -> tuple[str, ...]:
    return tuple("-" if each is None else f"{each:.2f} s" for each in seconds)


def _say(name: str, done: list[Cycle], result: Figures, *, has_job: bool) -> None:
    if len(done) > 1 and any(cycle.doubts for cycle in done) and not result.doubts:
        output.say(f"Cycles that others disturbed were repeated, {MORE_TRIES} at most", "yellow")
    if not all(cycle.by_process for cycle in done):
        output.say(
            "Measured by the GPUs' free memory: the broker cannot tell what its processes hold"
        )
        if result.residual_mib is None:
            output.say(
                f"What {name} keeps after an unload was not to be seen: restart it and measure "
                "again, before anything loads it"
            )
    if not has_job:
        output.say('A job may take more: --request "POST /path" --data FILE measures one')


def _store(path: Path, name: str, result: Figures) -> None:
    found = {"footprint_mib": result.footprint_mib}
    if result.residual_mib is not None:
        found["residual_mib"] = result.residual_mib
    set_figures(path, name, found)
    written = ", ".join(f"{key}: {figure}" for key, figure in found.items())
    output.say(f"wrote {written} to {name} in {path}")
    output.say("Next: systemctl reload mgpu (or send the broker SIGHUP); it then counts with this")
