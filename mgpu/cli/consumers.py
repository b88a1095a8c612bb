"""``mgpu load NAME`` and ``mgpu unload NAME``."""

from __future__ import annotations

from typing import Annotated

import typer

from mgpu.cli import output
from mgpu.cli.client import Client, action
from mgpu.cli.options import DEFAULT_URL, Url

Name = Annotated[str, typer.Argument(help="The consumer's name.")]
Wait = Annotated[float, typer.Option("--wait", min=0.1, help="Seconds to wait for it to be done.")]

DEFAULT_WAIT_S = 900.0


def load(name: Name, *, url: Url = DEFAULT_URL, wait: Wait = DEFAULT_WAIT_S) -> None:
    """Make a consumer resident, evicting others if it must be."""
    _act(name, "load", "Loading", url, wait)
    output.say(f"{name} is resident. To free its VRAM again: mgpu unload {name}")


def unload(name: Name, *, url: Url = DEFAULT_URL, wait: Wait = DEFAULT_WAIT_S) -> None:
    """Take a consumer out of VRAM once its running jobs have ended."""
    _act(name, "unload", "Unloading", url, wait)
    output.say(f"{name} is absent. Its next job loads it again; mgpu status shows the free VRAM")


def _act(name: str, verb: str, doing: str, url: str, wait_s: float) -> None:
    client = Client.at(url)
    with output.console(stderr=True).status(f"{doing} {output.plain(name)} ..."):
        client.post(action(name, verb), timeout_s=wait_s)
