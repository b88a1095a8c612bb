"""A program for consumers with a command: the small GPU service, and bad habits on demand.

What it starts writes its process number to ``--pids``, so that a test can see whether it is gone.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--pids", type=Path, help="a file for the process numbers")
parser.add_argument("--workers", type=int, default=0, help="children in the same session")
parser.add_argument("--escapers", type=int, default=0, help="orphans in sessions of their own")
parser.add_argument("--stubborn", action="store_true", help="nobody of all these heeds SIGTERM")
parser.add_argument("--say", action="append", default=[], help="a line for standard error")
parser.add_argument("--environment", action="append", default=[], help="a variable to print")
parser.add_argument("--exit", type=int, help="ends with this status after all that")
parser.add_argument("--serve", nargs=argparse.REMAINDER, default=[], help="gpu_service's arguments")
options = parser.parse_args()

SLEEPER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"
PLAIN = "import time; time.sleep(1000)"


def note(pid: int) -> None:
    if options.pids:
        with options.pids.open("a") as file:
            file.write(f"{pid}\n")


if options.stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = [sys.executable, "-c", SLEEPER if options.stubborn else PLAIN]
for _ in range(options.workers):
    note(subprocess.Popen(child).pid)
for _ in range(options.escapers):
    # The one between ends at once, which makes an orphan; that may be ended before it runs.
    middle = (
        "import subprocess, sys; "
        "print(subprocess.Popen(sys.argv[1:], start_new_session=True, stdout=2).pid)"
    )
    between = [sys.executable, "-c", middle, *child]
    note(int(subprocess.run(between, check=True, stdout=subprocess.PIPE).stdout))
note(os.getpid())
for line in options.say:
    sys.stderr.write(f"{line}\n")
for name in options.environment:
    sys.stdout.write(f"{name}={os.environ.get(name)}\n")
sys.stdout.flush()
if options.exit is not None:
    sys.exit(options.exit)
if options.serve:
    service = str(Path(__file__).with_name("gpu_service.py"))
    os.execv(sys.executable, [sys.executable, service, *options.serve])
time.sleep(1000)
