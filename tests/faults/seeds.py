"""``python -m tests.faults.seeds FIRST COUNT``: plays seeds and prints a report for a program."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from tests.faults.playing import run

if __name__ == "__main__":
    print(json.dumps(asdict(run(int(sys.argv[1]), int(sys.argv[2])))))  # noqa: T201 - its purpose
