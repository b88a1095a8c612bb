"""``mgpu measure NAME``: how much VRAM a consumer takes, keeps, and how long its loads last."""

from __future__ import annotations

import asyncio
import json
import os.path
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from mgpu.cli import output
from mgpu.cli.client import Client
from mgpu.cli.consumers import DEFAULT_WAIT_S, Name
from mgpu.cli.cycles import MORE_TRIES, Bench, Job, steps
from mgpu.cli.cycles import measure as run_cycles
from mgpu.cli.failures import BrokerSaidNo
from mgpu.cli.figures import Cycle, Figures, figures
from mgpu.cli.options import DEFAULT_CONFIG, DEFAULT_URL, ConfigFile, Url
from mgpu.config.load import load
from mgpu.config.model import ConsumerConfig
from mgpu.config.problems import InvalidConfig, did_you_mean
from mgpu.config.rewrite import set_figures
from mgpu.errors import ConfigError

_A_FILE_NAME = re.compile(r"[\w./~-]+\.[A-Za-z][A-Za-z0-9]{0,11}")
"""With a suffix, as nobody writes a request's body."""
_METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")
_WORKFLOWS = frozenset({"/prompt", "/api/prompt"})
"""Where ComfyUI takes workflows."""
_LAST_WORD_S = 60.0
"""What the broker may take besides to stop a job whose time is up, and to say so."""


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
        typer.Option(
            "--data",
            help="The job's body: a file's name, or the text itself. For POST /prompt a workflow "
            'as ComfyUI\'s "Export (API)" saves it will do.',
        ),
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
    wait: Annotated[
        float | None,
        typer.Option(
            "--wait",
            min=0.1,
            help="Seconds that a load, a job or an unload may take: "
            f"{DEFAULT_WAIT_S:g}, and for a job what its job_timeout_s says if that is more.",
        ),
    ] = None,
) -> None:
    """Cycle a consumer through the running broker: unload, load, job, unload; show what it takes.

    Others may be evicted to make room. The consumer itself is left as it was found.
    """
    job = _job(request, data)
    given = _given(config, name, needed=store)
    bench = Bench(
        Client.at(url), name, settle, wait or DEFAULT_WAIT_S, wait or _job_timeout_s(given)
    )
    with _progress(name, steps(cycles, job)) as advance:
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


def _job_timeout_s(given: ConsumerConfig | None) -> float:
    """For how long the broker may be silent about a job: it ends what runs for longer."""
    own_s = 0.0 if given is None else given.job_timeout_s + _LAST_WORD_S
    return max(DEFAULT_WAIT_S, own_s)


def _job(request: str | None, data: str | None) -> Job | None:
    if request is None:
        if data is not None:
            raise typer.BadParameter("--data is the body of a --request")
        return None
    method, _, path = request.strip().partition(" ")
    path = path.strip()
    if method not in _METHODS or not path.startswith("/") or not path.isascii() or " " in path:
        raise typer.BadParameter(f'--request must be "METHOD /PATH", METHOD {", ".join(_METHODS)}')
    body = b"" if data is None else _content(data)
    try:
        document = json.loads(body)
    except ValueError:
        return Job(method, path, body, "application/octet-stream")
    if path.partition("?")[0] in _WORKFLOWS:
        body = _prompt(document, body)
    return Job(method, path, body, "application/json")


def _content(data: str) -> bytes:
    """What is in the file of this name; without one, the text itself."""
    try:
        # Path.is_file raises for what is too long to be a name.
        if os.path.isfile(data):  # noqa: PTH113
            return Path(data).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"--data: {data}: {error.strerror}") from error
    if _A_FILE_NAME.fullmatch(data):
        raise typer.BadParameter(f"--data: there is no file {data}")
    return data.encode()


def _prompt(document: Any, body: bytes) -> bytes:
    """The body with which ComfyUI runs a workflow; what is no workflow alone is it already."""
    if not isinstance(document, dict) or not document:
        return body
    if isinstance(document.get("nodes"), list):
        raise typer.BadParameter(
            '--data is a workflow as the editor saves it: save it with "Export (API)"'
        )
    nodes = document.values()
    alone = all(isinstance(node, dict) and "class_type" in node for node in nodes)
    return json.dumps({"prompt": document}).encode() if alone else body


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
def _progress(name: str, total: int) -> Iterator[Callable[[str], None]]:
    """Show at a terminal which step it is at, and how many of them are done."""
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
        task = progress.add_task(output.plain(name), total=total)
        numbers = count()

        def advance(doing: str) -> None:
            done = next(numbers)
            progress.update(
                task,
                completed=done,
                total=max(total, done + 1),  # cycles may be repeated
                description=output.plain(f"{name}: {doing}"),
                refresh=True,
            )

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
