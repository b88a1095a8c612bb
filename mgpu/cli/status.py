"""``mgpu status``: GPUs, consumers, queue and lock."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.live import Live

from mgpu.cli import output
from mgpu.cli.client import Client
from mgpu.cli.failures import CannotReach
from mgpu.cli.options import DEFAULT_URL, Url
from mgpu.cli.view import render

TIMEOUT_S = 10.0
INTERVAL_S = 1.0


def status(
    *,
    url: Url = DEFAULT_URL,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again every second, until Ctrl-C.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the broker's own document.")
    ] = False,
) -> None:
    """Show the GPUs, the consumers, the queue and who holds the lock."""
    client = Client.at(url)
    show = _print_json if as_json else _print_view
    try:
        if not watch:
            show(_fetch(client))
        elif sys.stdout.isatty() and not as_json:
            _watch_live(client)
        else:
            for document in _documents(client):
                show(document)
    except KeyboardInterrupt:
        if not watch:
            raise


def _fetch(client: Client) -> dict[str, Any]:
    document = client.get("/api/status", timeout_s=TIMEOUT_S)
    if not (isinstance(document, dict) and document.keys() >= {"gpus", "consumers", "queue"}):
        raise CannotReach(f"what answers at {client} is no mgpu broker")
    return document


def _documents(client: Client) -> Iterator[dict[str, Any]]:
    while True:
        yield _fetch(client)
        time.sleep(INTERVAL_S)


def _watch_live(client: Client) -> None:
    with Live(console=output.console(), auto_refresh=False, screen=True) as live:
        for document in _documents(client):
            live.update(render(document), refresh=True)


def _print_view(document: dict[str, Any]) -> None:
    output.console().print(render(document))


def _print_json(document: dict[str, Any]) -> None:
    """One line a document where they follow each other into a program."""
    print(json.dumps(document, indent=2 if sys.stdout.isatty() else None), flush=True)
