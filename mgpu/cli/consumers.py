"""``mgpu load NAME``, and ``unload``, ``pin``, ``unpin`` and ``restart``: one consumer each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from mgpu.cli import output
from mgpu.cli.client import Client, action
from mgpu.cli.options import DEFAULT_URL, Url

Name = Annotated[str, typer.Argument(help="The consumer's name.")]
Wait = Annotated[float, typer.Option("--wait", min=0.1, help="Seconds to wait for it to be done.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Load it with another value in the load request's body, such as ctx=32768; again for "
        "more. JSON, or text; a dot in the key leads into an object, null takes it away.",
    ),
]

DEFAULT_WAIT_S = 900.0


def load(
    name: Name,
    *,
    settings: Settings = None,
    url: Url = DEFAULT_URL,
    wait: Wait = DEFAULT_WAIT_S,
) -> None:
    """Make a consumer resident, evicting others if it must be."""
    document = {"body": _parsed(settings)} if settings else None
    _act(name, "load", "Loading", url, wait, document)
    output.say(f"{name} is resident. To free its VRAM again: mgpu unload {name}")


def unload(name: Name, *, url: Url = DEFAULT_URL, wait: Wait = DEFAULT_WAIT_S) -> None:
    """Take a consumer out of VRAM once its running jobs have ended."""
    _act(name, "unload", "Unloading", url, wait)
    output.say(f"{name} is absent. Its next job loads it again; mgpu status shows the free VRAM")


def pin(name: Name, *, url: Url = DEFAULT_URL, wait: Wait = DEFAULT_WAIT_S) -> None:
    """Keep a consumer in VRAM until it is unpinned; it is loaded if it must be."""
    _act(name, "pin", "Pinning", url, wait)
    output.say(f"{name} is pinned: never evicted, loaded when absent. To end it: mgpu unpin {name}")


def unpin(name: Name, *, url: Url = DEFAULT_URL, wait: Wait = DEFAULT_WAIT_S) -> None:
    """Let a consumer be evicted again."""
    _act(name, "unpin", "Unpinning", url, wait)
    output.say(f"{name} is not pinned. It stays until its room is needed, or mgpu unload {name}")


def restart(name: Name, *, url: Url = DEFAULT_URL, wait: Wait = DEFAULT_WAIT_S) -> None:
    """Stop a consumer, its running jobs with it, and load it again."""
    _act(name, "restart", "Restarting", url, wait)
    output.say(f"{name} was restarted. mgpu status shows how it is")


def _act(  # noqa: PLR0913, PLR0917 - what is done, where and for how long
    name: str,
    verb: str,
    doing: str,
    url: str,
    wait_s: float,
    document: Mapping[str, Any] | None = None,
) -> None:
    client = Client.at(url)
    with output.console(stderr=True).status(f"{doing} {output.plain(name)} ..."):
        client.post(action(name, verb), document, timeout_s=wait_s)


def _parsed(settings: Sequence[str]) -> dict[str, Any]:
    """The object that settings make up; a dot in a key leads into an object."""
    body: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        *above, last = key.split(".")
        if not equals or not all((*above, last)):
            raise typer.BadParameter(f"--set {setting}: must be KEY=VALUE")
        where = body
        for name in above:
            where = where.setdefault(name, {})
            if not isinstance(where, dict):
                raise typer.BadParameter(f"--set {setting}: {name} has a value of its own")
        where[last] = _value(text)
    return body


def _value(text: str) -> Any:
    """What JSON takes it for, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
