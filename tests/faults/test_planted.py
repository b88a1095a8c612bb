"""The world has teeth: every planted bug is found.

Each search begins where the last full one (``scripts/simulate --planted``) found the bug, and goes
on from the first seed when that is not enough any more.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.planted import Planted, all_planted, hints, plant, run_python, search

BUGS = all_planted()
NEAR, FAR = 3, 600


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_found(bug: Planted, tmp_path: Path) -> None:
    hint = hints().get(bug.name, 0)
    found = search(bug, tmp_path / "near", hint, NEAR, timeout_s=50)
    if found.seed is None:
        found = search(bug, tmp_path / "far", 0, FAR, timeout_s=50)
    assert found.seed is not None, f"scripts/simulate --planted {bug.name} looks further"
    assert found.what


def test_there_are_enough_and_each_has_a_title() -> None:
    titles = [bug.title for bug in BUGS]
    assert len(set(titles)) == len(titles) >= 25
    assert sum("llama-swap #946" in title or "ollama #17408" in title for title in titles) == 2
    assert hints().keys() == {bug.name for bug in BUGS}


def test_a_failure_is_replayed_by_its_seed_and_cut_to_a_short_story(tmp_path: Path) -> None:
    bug = next(bug for bug in BUGS if bug.name == "ollama-17408")
    seed = hints()[bug.name]
    plant(bug, tmp_path)
    told = run_python(tmp_path, "tests.faults", "--seed", str(seed), timeout_s=55)
    assert told.returncode == 1, told.stdout
    assert f"Replay it: scripts/simulate --seed {seed}" in told.stdout
    head, _, tale = told.stdout.partition("Cut from ")
    assert f"Seed {seed} failed: " in head
    lines = tale.split()
    before, after = int(lines[0]), int(lines[3].rstrip(","))
    assert after <= before
    assert after < 8
    assert "JobArrived" in tale


def test_a_patch_that_does_not_fit_any_more_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "mgpu" / "core"
    folder.mkdir(parents=True)
    for name in ("serving.py", "placement.py"):
        (folder / name).write_text("nothing of it\n")
    bug = next(bug for bug in BUGS if bug.name == "ollama-17408")
    with pytest.raises(AssertionError, match=r"ollama-17408: mgpu/core/serving\.py has 0 times"):
        bug.apply(tmp_path)
