"""Bugs planted into copies of the core: a world that does not find them has no teeth.

Each ``planted/NAME.patch`` has a title in its first line and a unified diff below. A hunk is found
by its text and not by its line numbers, so that it survives edits around it; where its text is not
there exactly once, the patch says so and is to be written anew.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults.playing import Report

ROOT = Path(__file__).parents[2]
PLANTED = Path(__file__).parent / "planted"
HINTS = PLANTED / "seeds.json"
"""The seed that found each bug last: searches begin there, and are real searches all the same."""


class DoesNotApplyError(AssertionError):
    """A patch is to be written anew."""


@dataclass(frozen=True, slots=True)
class Planted:
    """One planted bug."""

    name: str
    title: str
    path: Path

    def apply(self, root: Path) -> None:
        """Change the files under ``root``; raises ``DoesNotApplyError``."""
        for file, hunks in self._files():
            target = root / file
            text = target.read_text()
            for old, new in hunks:
                if text.count(old) != 1:
                    raise DoesNotApplyError(
                        f"{self.name}: {file} has {text.count(old)} times:\n{old}"
                    )
                text = text.replace(old, new)
            target.write_text(text)

    def _files(self) -> Iterator[tuple[str, list[tuple[str, str]]]]:
        for part in self.path.read_text().split("\n--- a/")[1:]:
            name, _, rest = part.partition("\n")
            hunks = []
            for hunk in rest.split("\n@@ ")[1:]:
                lines = hunk.split("\n")[1:]
                old = "\n".join(line[1:] for line in lines if line[:1] in {" ", "-"})
                new = "\n".join(line[1:] for line in lines if line[:1] in {" ", "+"})
                hunks.append((old + "\n", new + "\n"))
            yield name, hunks


def all_planted() -> list[Planted]:
    """Every bug, by name."""
    return [
        Planted(path.stem, path.read_text().partition("\n")[0], path)
        for path in sorted(PLANTED.glob("*.patch"))
    ]


@dataclass(frozen=True, slots=True)
class Found:
    """What came of a search. ``seed`` None: nothing was found."""

    seed: int | None
    seeds: int
    what: str


def plant(bug: Planted, folder: Path) -> None:
    """Make a copy of the program with a bug in it, to be run with ``folder`` as its root."""
    shutil.copytree(ROOT / "mgpu", folder / "mgpu", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests").symlink_to(ROOT / "tests")
    bug.apply(folder)


def search(bug: Planted, folder: Path, first: int, seeds: int, timeout_s: float) -> Found:
    """Plant a bug in an empty folder and play seeds until one finds it."""
    plant(bug, folder)
    report = run_seeds(folder, first, seeds, timeout_s)
    return Found(report.seed, report.seeds, report.what.partition("\n")[0])


def run_seeds(root: Path, first: int, seeds: int, timeout_s: float) -> Report:
    """Play seeds over the program in ``root``, in a process of its own."""
    ended = run_python(root, "tests.faults.seeds", str(first), str(seeds), timeout_s=timeout_s)
    if not ended.stdout:
        raise AssertionError(f"seeds {first} to {first + seeds - 1}: {ended.stderr}")
    return Report(**json.loads(ended.stdout))


def run_python(
    root: Path, module: str, *arguments: str, timeout_s: float, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run a module over the program in ``root``.

    Coverage is not measured there: it would triple the time, and the playbooks answer for it.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=root,
        env={**kept, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", **environ},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def hints() -> dict[str, int]:
    """Where to begin to search for each bug."""
    known: dict[str, int] = json.loads(HINTS.read_text()) if HINTS.exists() else {}
    return known
