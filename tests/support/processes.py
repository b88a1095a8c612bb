"""Children of a test that are asked by lines and end with it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.nvml import NvmlStandin, environment

_HOLD = """
import sys
from pathlib import Path
from mgpu.gpu.simulated import HeldMemory

held = HeldMemory(Path(sys.argv[1]))
for line in sys.stdin:
    held.hold(sys.argv[2], int(line))
    print("held", flush=True)
"""


class LineChild:
    """A child that answers every line with one line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def end_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=10)


class Holder(LineChild):
    """Holds memory on a GPU that counts ``HeldMemory``."""

    def hold(self, mib: int) -> None:
        assert self.ask(str(mib)) == "held\n"


class Prober(LineChild):
    """Reads GPUs through a ``ThreadedProbe`` over NVML."""

    def read(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.ask("read"))
        return answer


@contextmanager
def _child(command: list[str], env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def holder(directory: Path, name: str) -> Iterator[Holder]:
    command = [sys.executable, "-c", _HOLD, str(directory), name]
    with _child(command, environment({})) as process:
        yield Holder(process)


@contextmanager
def prober(nvml: NvmlStandin, *, deadline_s: float = 10.0) -> Iterator[Prober]:
    command = [sys.executable, "-m", "tests.support.probe_process", str(deadline_s)]
    with _child(command, environment(nvml.env)) as process:
        yield Prober(process)
