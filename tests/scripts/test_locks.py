from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "scripts" / "lock"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins(lock: str) -> dict[str, str]:
    text = (LOCKS / f"{lock}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", name, maxsplit=1)[0].lower() for name in requirements}


@pytest.mark.parametrize("lock", ["run", "dev", "build", "services"])
def test_a_lock_names_no_host(lock: str) -> None:
    assert "://" not in (LOCKS / f"{lock}.txt").read_text()


@pytest.mark.parametrize("lock", ["run", "dev", "build", "services"])
def test_everything_in_a_lock_has_an_exact_version_and_a_hash(lock: str) -> None:
    text = (LOCKS / f"{lock}.txt").read_text().replace("\\\n", " ")
    entries = [line for line in text.splitlines() if line.strip() and "#" not in line.lstrip()[:1]]
    assert entries
    for entry in entries:
        assert re.match(r"[a-z0-9-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", entry), entry


def test_the_locks_cover_what_the_project_asks_for() -> None:
    run = names(PROJECT["project"]["dependencies"])
    dev = names(PROJECT["project"]["optional-dependencies"]["dev"])
    normal = {name.replace("_", "-") for name in run | dev}
    assert {name.replace("_", "-") for name in run} <= pins("run").keys()
    assert normal <= pins("dev").keys()
    assert names(PROJECT["build-system"]["requires"]) <= pins("build").keys()


def test_the_tests_run_with_the_versions_that_users_get() -> None:
    run, dev = pins("run"), pins("dev")
    assert {name: dev[name] for name in run} == run
