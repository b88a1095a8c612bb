"""``scripts/simulate``: play seeds, replay one, or search for the planted bugs."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tests.faults import planted
from tests.faults.kinds import Fault, label
from tests.faults.playing import Report, play, run, shrink, story
from tests.faults.scenario import draw

ENOUGH_SEEDS = 5000
"""A planted bug that so many seeds do not find shows a hole in the world or its promises."""


def main(arguments: list[str]) -> int:
    """Exit status 1: a seed failed, or a planted bug was not found."""
    options = _options(arguments)
    console = Console()
    if options.planted is not None:
        return _search(console, options.planted, options.seeds)
    if options.seed is not None:
        return _replay(console, options.seed)
    return _play(console, options.first, options.seeds)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=None, help="how many to play (2000)")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="replay this one; if it fails, tell its story")
    parser.add_argument(
        "--planted",
        nargs="*",
        metavar="NAME",
        help=f"search for planted bugs, all or these, in {ENOUGH_SEEDS} seeds each",
    )
    options = parser.parse_args(arguments)
    if options.seeds is None:
        options.seeds = 2000 if options.planted is None else ENOUGH_SEEDS
    if options.seeds < 1:
        parser.error("--seeds must be 1 or more")
    unknown = set(options.planted or ()) - {bug.name for bug in planted.all_planted()}
    if unknown:
        parser.error(f"no such planted bug: {', '.join(sorted(unknown))}")
    return options


def _progress(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True)


def _play(console: Console, first: int, seeds: int) -> int:
    with _progress(console) as progress:
        task = progress.add_task("seeds", total=seeds)
        report = run(first, seeds, lambda _seed: progress.advance(task))
    console.print(_faults(report))
    each_ms = 1000 * report.seconds / report.seeds
    console.print(f"{report.seeds} seeds from {first} on, {each_ms:.1f} ms each")
    if report.seed is None:
        console.print(
            f"Every promise held. More: scripts/simulate --first {first + seeds} --seeds {seeds}"
        )
        return 0
    console.print(f"\nSeed {report.seed} failed: {report.what}", markup=False)
    return _tell(console, report.seed)


def _faults(report: Report) -> Table:
    table = Table("fault", "met", "what happens")
    for fault in Fault:
        table.add_row(label(fault), str(report.met[label(fault)]), fault.value)
    return table


def _replay(console: Console, seed: int) -> int:
    if (failure := play(draw(seed))) is None:
        console.print(f"Seed {seed}: every promise held.")
        return 0
    console.print(f"Seed {seed} failed: {failure.what}", markup=False)
    return _tell(console, seed)


def _tell(console: Console, seed: int) -> int:
    failure = play(draw(seed))
    assert failure is not None, f"seed {seed} fails now and then: something has a clock of its own"
    shortest = shrink(failure)
    before, after = len(failure.scenario.lines), len(shortest.scenario.lines)
    console.print(f"Cut from {before} lines to {after}, this is what happens:\n", markup=False)
    console.print(story(shortest), markup=False, highlight=False, soft_wrap=True)
    console.print(f"\nReplay it: scripts/simulate --seed {seed}", markup=False)
    return 1


def _search(console: Console, names: list[str], seeds: int) -> int:
    bugs = [bug for bug in planted.all_planted() if not names or bug.name in names]
    table = Table("planted bug", "found by seed", "what did not hold")
    missed, found_by = 0, planted.hints()
    with _progress(console) as progress:
        task = progress.add_task("planted bugs", total=len(bugs))
        for bug in bugs:
            with tempfile.TemporaryDirectory() as folder:
                found = planted.search(bug, Path(folder), 0, seeds, timeout_s=seeds)
            if found.seed is None:
                missed += 1
                table.add_row(bug.title, "[red]none[/red]", "")
            else:
                found_by[bug.name] = found.seed
                table.add_row(bug.title, str(found.seed), found.what)
            progress.advance(task)
    console.print(table)
    planted.HINTS.write_text(json.dumps(dict(sorted(found_by.items())), indent=1) + "\n")
    if missed:
        console.print(f"{missed} of {len(bugs)} were not found in {seeds} seeds: teach the world.")
        return 1
    console.print(f"All {len(bugs)} were found; where is kept in {planted.HINTS.name}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
