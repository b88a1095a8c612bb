"""The shell scripts, with a Python that only writes down what it is asked to do."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [
    ".ci/run",
    "scripts/check",
    "scripts/coverage",
    "scripts/demo",
    "scripts/install",
    "scripts/relock",
    "scripts/simulate",
    "scripts/test",
    "scripts/test-comfyui",
    "scripts/test-gpu",
    "scripts/test-services",
]

FAKE_PYTHON = """\
#!/bin/bash
set -eu
case "$1 ${2:-}" in
  "-c "*) [[ ! ${TOO_OLD:-} ]] && echo "$FAKE_PYTHON" ;;
  "-VV "*) echo "Python 3.x" ;;
  "-m venv")
    mkdir -p "$4/bin"
    rm -f "$4"/.installed-*
    cp "$FAKE_PYTHON" "$4/bin/python"
    printf '#!/bin/bash\\necho "mgpu $*"\\n' >"$4/bin/mgpu"
    chmod +x "$4/bin/mgpu"
    echo venv >>"$CALLS" ;;
  "-m pip") echo "$*" >>"$CALLS"; exit "${PIP_FAILS:-0}" ;;
esac
"""


class Checkout:
    """A copy of the scripts, where nothing but a few tools and a false python3 can be found."""

    def __init__(self, tmp_path: Path) -> None:
        self.root = tmp_path / "a checkout"
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        shutil.copy(ROOT / "pyproject.toml", self.root)
        self._calls = tmp_path / "calls"
        tools = tmp_path / "tools"
        tools.mkdir()
        for tool in ("bash", "cat", "chmod", "cp", "dirname", "env", "mkdir", "rm", "sha256sum"):
            (tools / tool).symlink_to(shutil.which(tool) or pytest.fail(f"no {tool} here"))
        fake = tools / "python3"
        fake.write_text(FAKE_PYTHON)
        fake.chmod(0o755)
        self._environ = {
            "PATH": str(tools),
            "CALLS": str(self._calls),
            "FAKE_PYTHON": str(fake),
        }

    def run(self, script: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.root / "scripts" / script, *arguments],
            env={**self._environ, **environ},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def calls(self) -> list[str]:
        """What was asked of Python since the last time."""
        calls = self._calls.read_text().splitlines() if self._calls.exists() else []
        self._calls.unlink(missing_ok=True)
        return calls


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_valid_bash_that_stops_at_the_first_error(script: str) -> None:
    path = ROOT / script
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in path.read_text()
    subprocess.run(["bash", "-n", path], check=True, timeout=10)


def test_no_script_is_left_out_above() -> None:
    found = {
        str(path.relative_to(ROOT))
        for folder in (".ci", "scripts")
        for path in (ROOT / folder).iterdir()
        if path.is_file()
    }
    assert found == set(SCRIPTS)


def test_install_installs_what_the_locks_say_and_nothing_else(checkout: Checkout) -> None:
    done = checkout.run("install", "run")
    assert done.returncode == 0, done.stderr
    venv, locked, project = checkout.calls()
    lock = checkout.root / "scripts" / "lock"
    assert venv == "venv"
    assert f"--no-deps --require-hashes -r {lock}/run.txt -r {lock}/build.txt" in locked
    assert f"--no-build-isolation --no-deps -e {checkout.root}" in project


def test_install_does_nothing_the_second_time(checkout: Checkout) -> None:
    checkout.run("install", "run")
    checkout.calls()
    assert checkout.run("install", "run").returncode == 0
    assert checkout.calls() == []


def test_what_is_installed_for_dev_serves_run_and_not_the_other_way(checkout: Checkout) -> None:
    checkout.run("install", "dev")
    checkout.calls()
    checkout.run("install", "run")
    assert checkout.calls() == []
    shutil.rmtree(checkout.root / ".venv")
    checkout.run("install", "run")
    checkout.calls()
    checkout.run("install")
    assert "dev.txt" in checkout.calls()[1]


@pytest.mark.parametrize("changed", ["scripts/lock/run.txt", "pyproject.toml"])
def test_install_starts_again_when_a_lock_or_the_project_has_changed(
    checkout: Checkout, changed: str
) -> None:
    checkout.run("install", "run")
    checkout.calls()
    with (checkout.root / changed).open("a") as file:
        file.write("# changed\n")
    checkout.run("install", "run")
    assert len(checkout.calls()) == 3


def test_install_starts_again_after_it_failed_halfway(checkout: Checkout) -> None:
    assert checkout.run("install", "run", PIP_FAILS="1").returncode != 0
    checkout.calls()
    assert checkout.run("install", "run").returncode == 0
    assert len(checkout.calls()) == 3


def test_install_without_a_fitting_python_says_what_is_needed(checkout: Checkout) -> None:
    done = checkout.run("install", TOO_OLD="1")
    assert done.returncode == 1
    assert "no Python 3.11 or newer found" in done.stderr
    assert checkout.calls() == []


def test_install_of_an_unknown_kind_says_so(checkout: Checkout) -> None:
    done = checkout.run("install", "everything")
    assert done.returncode == 1
    assert "'everything' is neither run nor dev" in done.stderr


def test_demo_installs_and_hands_its_arguments_on(checkout: Checkout) -> None:
    done = checkout.run("demo", "--jobs", "3", "--seed", "a b")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "mgpu demo --jobs 3 --seed a b\n"
    assert "run.txt" in checkout.calls()[1]


def test_relock_without_uv_says_so(checkout: Checkout) -> None:
    done = checkout.run("relock")
    assert done.returncode == 1
    assert "uv is not installed" in done.stderr
