"""The command line: which commands there are, and what a failure's exit code is.

0: done. 1: the broker said no. 2: bad usage or configuration. 3: cannot reach the broker.
Commands raise; only here are errors turned into text and codes.

A command's module is imported when it is called: all of them together cost more than a second, and
whoever asks for the status needs nothing of what serves.
"""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mgpu import __version__
from mgpu.cli import output
from mgpu.cli.failures import CannotReach
from mgpu.config.problems import InvalidConfig
from mgpu.errors import ConfigError, MgpuError

COMMANDS = {
    "serve": ("serve", "Run the broker until it is told to stop."),
    "check": ("check", "Validate the configuration."),
    "init": ("init", "Find the services that run here and propose a configuration."),
    "status": ("status", "Show the GPUs, the consumers, the queue and who holds the lock."),
    "jobs": ("jobs", "Show the jobs that run or wait, or take one out."),
    "measure": ("measure", "Cycle a consumer and show how much VRAM it takes."),
    "demo": ("demo", "Run the main job on a simulated GPU."),
    "simulate": ("simulate", "Compare scheduling policies in virtual time."),
    "load": ("consumers", "Make a consumer resident, evicting others if it must be."),
    "unload": ("consumers", "Take a consumer out of VRAM once its running jobs have ended."),
    "pin": ("consumers", "Keep a consumer in VRAM until it is unpinned."),
    "unpin": ("consumers", "Let a consumer be evicted again."),
    "restart": ("consumers", "Stop a consumer, its running jobs with it, and load it again."),
    "pause": ("pausing", "Let running jobs end, empty the VRAM, and hold the queue."),
    "resume": ("pausing", "Serve jobs again."),
}
"""Each command with its module, where it is the function of its own name, and its line of help."""


class _Commands(TyperGroup):
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and _imported(name or args[0]), rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MgpuError as error:
            problems = error.problems if isinstance(error, InvalidConfig) else (error,)
            for problem in problems:
                output.complain(str(problem))
            raise typer.Exit(_exit_code(error)) from None


def _imported(name: str) -> Any:
    """The command itself, with its arguments and options."""
    module, _ = COMMANDS[name]
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.command(name)(getattr(import_module(f"mgpu.cli.{module}"), name))
    return typer.main.get_command(alone)


def _listed() -> None:
    """Stands for a command in lists until it is called."""


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
for _name, (_, _line) in COMMANDS.items():
    app.command(_name, help=_line)(_listed)


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
