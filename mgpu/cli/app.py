"""The command line: which commands there are, and what a failure's exit code is.

0: done. 1: the broker said no. 2: bad usage or configuration. 3: cannot reach the broker.
Commands raise; only here are errors turned into text and codes.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mgpu import __version__
from mgpu.cli import (
    check,
    consumers,
    demo,
    init,
    jobs,
    measure,
    output,
    pausing,
    serve,
    simulate,
    status,
)
from mgpu.cli.client import CannotReach
from mgpu.config.problems import InvalidConfig
from mgpu.errors import ConfigError, MgpuError


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MgpuError as error:
            problems = error.problems if isinstance(error, InvalidConfig) else (error,)
            for problem in problems:
                output.complain(str(problem))
            raise typer.Exit(_exit_code(error)) from None


def _exit_code(error: MgpuError) -> int:
    match error:
        case ConfigError():
            return 2
        case CannotReach():
            return 3
        case _:
            return 1


app = typer.Typer(
    name="mgpu",
    cls=_Commands,
    help="Share a graphics card between services.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("serve")(serve.serve)
app.command("check")(check.check)
app.command("init")(init.init)
app.command("status")(status.status)
app.command("jobs")(jobs.jobs)
app.command("measure")(measure.measure_command)
app.command("demo")(demo.demo)
app.command("simulate")(simulate.simulate)
app.command("load")(consumers.load)
app.command("unload")(consumers.unload)
app.command("pin")(consumers.pin)
app.command("unpin")(consumers.unpin)
app.command("restart")(consumers.restart)
app.command("pause")(pausing.pause)
app.command("resume")(pausing.resume)


def _version(asked: bool) -> None:  # noqa: FBT001 - typer calls it
    if asked:
        print(f"mgpu {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command that the program's arguments name, then exit."""
    app(prog_name="mgpu")
