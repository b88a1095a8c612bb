"""``mgpu measure`` as a process of its own, and the table that it prints."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from tests.support.broker_process import BrokerProcess

SETTLE_S = 0.6


class Run:
    """A command that has ended."""

    def __init__(self, code: int | None, output: str) -> None:
        self.code = code
        self.output = output

    def row(self, name: str) -> str:
        """A row of the table, its blanks made one."""
        rows = [" ".join(line.split()) for line in self.output.splitlines()]
        return next(row for row in rows if row.startswith(f"{name} "))

    def seconds(self, name: str, column: str) -> float:
        """How long something took in this row."""
        return float(
            self.row(name).split(" s")[("load", "job", "unload").index(column)].split()[-1]
        )


def command(broker: BrokerProcess, *arguments: str) -> tuple[str, ...]:
    """The words of its command line."""
    settle = ("--settle", str(SETTLE_S))
    return (sys.executable, "-m", "mgpu", "measure", *arguments, *settle, "--url", broker.url)


async def measure(broker: BrokerProcess, *arguments: str, folder: Path) -> Run:
    """Run it in this folder until it ends."""
    process = await asyncio.create_subprocess_exec(
        *command(broker, *arguments),
        cwd=folder,
        env=dict(os.environ),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(50):
        output, _ = await process.communicate()
    return Run(process.returncode, output.decode())
