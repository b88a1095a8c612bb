"""Runs one program and sees to it that nothing of it is left: ``reaper.py GRACE_S -- PROGRAM…``.

The broker starts a program through this one, which does what an init does in a container. It is the
subreaper of all that the program starts (prctl(2), PR_SET_CHILD_SUBREAPER), so that workers in
sessions of their own and orphans stay its descendants. Standard input is a pipe whose other end
only the broker holds: when it closes, because the broker asks for the end or because the broker is
no more, however it died, the program's group gets SIGTERM, and after the grace everything that is
left gets SIGKILL. A program that ends by itself takes its descendants along in the same way. The
exit status is the program's, or 128 and the signal's number, as shells have it.

It imports the standard library alone and nothing of this package: it is to be there at once, and
stays for as long as the program does.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CANNOT_RUN = 127
_POLL_S = 0.02
"""How often it is looked whether descendants are gone: nothing tells of those that are no children
yet."""

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Run the program of the command line to its end, or to the end of standard input."""
    grace_s, program = float(sys.argv[1]), sys.argv[3:]
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # SIGTERM comes from this process itself too, when it is sent to the whole group.
        signal.signal(number, lambda *_: None)
    try:
        child = subprocess.Popen(  # noqa: S603 - what the configuration names
            program,
            stdin=subprocess.DEVNULL,
            # Nobody would end it if this process were killed.
            preexec_fn=lambda: _prctl(PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509
        )
    except OSError as error:
        sys.stderr.write(f"cannot run {program[0]}: {error.strerror}\n")
        raise SystemExit(CANNOT_RUN) from None
    status = _wait(child.pid, woken)
    last = _end_all(child.pid, grace_s)
    raise SystemExit(_exit_status(status if status is not None else last))


def _wait(child: int, woken: int) -> int | None:
    """The program's wait status; None when it is to be ended."""
    while True:
        readable, _, _ = select.select([sys.stdin.fileno(), woken], [], [])
        if woken in readable:
            signals = os.read(woken, 4096)
            status = _reap(child)
            if status is not None:
                return status
            if set(signals) & {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}:
                return None
        if sys.stdin.fileno() in readable and not os.read(sys.stdin.fileno(), 4096):
            return None


def _end_all(child: int, grace_s: float) -> int:
    """Return the program's wait status when no descendant is left."""
    kill_at = time.monotonic() + grace_s
    asked: set[int] = set()
    status = 0
    os.killpg(0, signal.SIGTERM)
    while True:
        left = _descendants()
        # After the look around, so that nobody who is missing there is collected by no one.
        reaped = _reap(child)
        status = status if reaped is None else reaped
        if not left:
            return status
        # What is in no group of ours is the program's to end, as long as it is there.
        if child not in left:
            for pid in left - asked:
                _send(pid, signal.SIGTERM)
            asked |= left
        if time.monotonic() > kill_at:
            for pid in left:
                _send(pid, signal.SIGKILL)
        time.sleep(_POLL_S)


def _reap(child: int) -> int | None:
    """Collect whoever has ended; the program's wait status if it is among them."""
    status = None
    while True:
        try:
            pid, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == child:
            status = ended


def _descendants() -> set[int]:
    """Every process below this one that lives."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            stat = (folder / "stat").read_text(errors="replace")
        except OSError:
            continue  # it has ended meanwhile
        # After the name, which is in brackets and may hold anything: the state and the parent.
        state, parent = stat.rpartition(")")[2].split()[:2]
        if state not in "ZX":
            parents[int(folder.name)] = int(parent)
    found: set[int] = set()
    fresh = {os.getpid()}
    while fresh:
        fresh = {pid for pid, parent in parents.items() if parent in fresh}
        found |= fresh
    return found


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # it has ended meanwhile
    except PermissionError as error:  # a program that changed its user
        sys.stderr.write(f"cannot end process {pid}: {error.strerror}\n")


def _exit_status(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    main()
