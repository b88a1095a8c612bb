"""``mgpu jobs``: who runs and who waits; one of them; and taking one out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.table import Table

from mgpu.cli import output
from mgpu.cli.client import Client
from mgpu.cli.failures import CannotReach
from mgpu.cli.options import DEFAULT_URL, Url
from mgpu.cli.view import duration

TIMEOUT_S = 10.0


class What(StrEnum):
    """What is to be done with one job."""

    SHOW = "show"
    CANCEL = "cancel"


def jobs(
    what: Annotated[What | None, typer.Argument(help="For one job; without it, all.")] = None,
    job: Annotated[str | None, typer.Argument(help="The job's id.", metavar="ID")] = None,
    *,
    url: Url = DEFAULT_URL,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the broker's own document.")
    ] = False,
) -> None:
    """Show the jobs that run or wait, or one of them; or take one out of the queue or stop it."""
    if what is not None and not job:
        raise typer.BadParameter(f"mgpu jobs {what} ID: which job? mgpu jobs lists them")
    client = Client.at(url)
    show: Callable[[dict[str, Any]], None]
    if what is None:
        document = client.get("/api/jobs", timeout_s=TIMEOUT_S)
        _complete(client, document, {"jobs"})
        show = _table
    else:
        path = f"/api/jobs/{quote(job or '', safe='')}"
        ask = client.get if what is What.SHOW else client.delete
        document = ask(path, timeout_s=TIMEOUT_S)
        _complete(client, document, {"job", "consumer", "state"})
        show = _lines if what is What.SHOW else _cancelled
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        show(document)


def _complete(client: Client, document: Any, keys: set[str]) -> None:
    if not (isinstance(document, dict) and document.keys() >= keys):
        raise CannotReach(f"what answers at {client} is no mgpu broker")


def _table(document: Mapping[str, Any]) -> None:
    if not document["jobs"]:
        output.say("No job runs or waits.")
        return
    table = Table("place", "job", "consumer", "priority", "waited", "", box=None, pad_edge=False)
    for job in document["jobs"]:
        place = "runs" if job["state"] == "running" else str(job["position"])
        cells = (place, job["job"], job["consumer"], str(job["priority"]))
        shown = map(output.plain, (*cells, duration(job["waited_s"]), _outlook(job)))
        table.add_row(*shown)
    output.console().print(table)


def _outlook(job: Mapping[str, Any]) -> str:
    if job["state"] == "running":
        return f"for {duration(job['ran_s'])}"
    return "begins when?" if job["eta_s"] is None else f"begins in about {duration(job['eta_s'])}"


def _lines(job: Mapping[str, Any]) -> None:
    at = "" if job["position"] is None else f" at place {job['position']}"
    output.say(f"{job['job']} of {job['consumer']} is {job['state']}{at}: {_outlook(job)}")
    output.say(f"priority {job['priority']}, waited {duration(job['waited_s'])}")


def _cancelled(job: Mapping[str, Any]) -> None:
    done = "stopped" if job["state"] == "running" else "taken out of the queue"
    output.say(f"{job['job']} of {job['consumer']} was {done}")
