from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("tests/real_services", "tests/services")


def counted_by_pytest() -> Counter[str]:
    """How many there are in each file, without those that run on a stand-in."""
    listing = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", *FOLDERS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    ).stdout
    names = [line for line in listing.splitlines() if "::" in line and "[stand-in" not in line]
    return Counter(name.partition("::")[0] for name in names)


def test_the_number_of_tests_of_every_real_service_is_told() -> None:
    text = (ROOT / "docs" / "tested-with.md").read_text()
    told = re.findall(r"^\| \[.*\| \[(\d+)\]\(\.\./([\w/]+\.py)\) \|", text, re.MULTILINE)
    assert {file: int(number) for number, file in told} == counted_by_pytest()
