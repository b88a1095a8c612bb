"""A stand-in for ``systemctl`` that knows the demo's own units: start, stop and show.

The demo must run where there is no systemd, and its transcription service is controlled by a unit
alone. ``python -m mgpu.demo.units DIRECTORY VERB UNIT`` answers like systemctl as far as the broker
asks. A unit is a file ``UNIT.json`` with the command to run. A started one holds a lock on
``UNIT.lock`` for as long as it lives, which is how it is known to be alive: a process number could
be somebody else's by now.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

STOP_TIMEOUT_S = 5.0
GLANCE_S = 0.5
"""Far longer than ``is_active`` holds a lock."""
_POLL_S = 0.01


def define(directory: Path, unit: str, command: list[str]) -> None:
    """Write a unit down; ``command`` prints a line when it is ready."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{unit}.json").write_text(json.dumps(command))


def start(directory: Path, unit: str) -> None:
    """Run a unit's command and return when it says that it is ready."""
    command = json.loads((directory / f"{unit}.json").read_text())
    with (directory / f"{unit}.lock").open("a") as lock:
        if not _lock(lock):
            return  # it runs already
        lock.truncate(0)
        # The unit itself writes its process number, so that it can be found even if whoever
        # starts it is killed just now.
        note_down = ["/bin/sh", "-c", 'echo $$ >>"$0"; exec "$@"', lock.name]
        process = subprocess.Popen(  # noqa: S603 - the demo's own command
            [*note_down, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[lock.fileno()],
        )
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        if not process.stdout.readline():
            raise SystemExit(f"{unit} ended with status {process.wait()}")


def stop(directory: Path, unit: str) -> None:
    """End a unit's process and return when it is gone."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    asked = False
    while is_active(directory, unit):
        number = (directory / f"{unit}.lock").read_text()
        if number.endswith("\n") and not asked:
            os.kill(int(number), signal.SIGTERM)
            asked = True
        if time.monotonic() > deadline:
            raise SystemExit(f"{unit} did not stop within {STOP_TIMEOUT_S:g} s")
        time.sleep(_POLL_S)


def _lock(lock: TextIO) -> bool:
    """Take a unit's lock; False when the unit itself has it: whoever only looks lets go of it."""
    deadline = time.monotonic() + GLANCE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        else:
            return True


def is_active(directory: Path, unit: str) -> bool:
    """Whether a unit's process lives."""
    try:
        lock = (directory / f"{unit}.lock").open()
    except FileNotFoundError:
        return False
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def show(directory: Path, unit: str) -> str:
    """The properties that the broker asks for."""
    active, sub = ("active", "running") if is_active(directory, unit) else ("inactive", "dead")
    return f"LoadState=loaded\nActiveState={active}\nSubState={sub}\nResult=success"


def main() -> None:
    """Do what the command line says; options are systemctl's and mean nothing here."""
    directory, verb, unit = [word for word in sys.argv[1:] if not word.startswith("-")]
    match verb:
        case "start":
            start(Path(directory), unit)
        case "stop":
            stop(Path(directory), unit)
        case "show":
            sys.stdout.write(show(Path(directory), unit) + "\n")
        case _:
            raise SystemExit(f"unknown verb {verb!r}; known are start, stop and show")


if __name__ == "__main__":
    main()
