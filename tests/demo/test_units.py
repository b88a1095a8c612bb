from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgpu.demo import units

UNIT = "any.service"
SLEEPER = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)"]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    units.define(tmp_path, UNIT, SLEEPER)
    yield tmp_path
    units.stop(tmp_path, UNIT)


def systemctl(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mgpu.demo.units", str(directory), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_a_started_unit_is_active_and_a_stopped_one_is_not(directory: Path) -> None:
    assert systemctl(directory, "--no-ask-password", "start", UNIT).returncode == 0
    assert "ActiveState=active" in systemctl(directory, "show", UNIT).stdout
    assert systemctl(directory, "stop", UNIT).returncode == 0
    assert "ActiveState=inactive" in systemctl(directory, "show", UNIT).stdout


def test_starting_twice_starts_once(directory: Path) -> None:
    assert systemctl(directory, "start", UNIT).returncode == 0
    number = (directory / f"{UNIT}.lock").read_text()
    assert systemctl(directory, "start", UNIT).returncode == 0
    assert (directory / f"{UNIT}.lock").read_text() == number


def test_who_only_looks_does_not_keep_a_unit_from_starting(directory: Path) -> None:
    lock = directory / f"{UNIT}.lock"
    lock.touch()
    look = "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_SH);"
    look += "print('looking', flush=True); time.sleep(0.1)"
    with subprocess.Popen(
        [sys.executable, "-c", look, str(lock)], stdout=subprocess.PIPE
    ) as looking:
        assert looking.stdout is not None
        looking.stdout.readline()
        assert systemctl(directory, "start", UNIT).returncode == 0
    assert units.is_active(directory, UNIT)


def test_a_unit_whose_starter_was_killed_can_be_stopped(directory: Path, tmp_path: Path) -> None:
    slow = [sys.executable, "-c", "import time; time.sleep(60)"]
    units.define(directory, UNIT, slow)
    command = [sys.executable, "-m", "mgpu.demo.units", str(directory), "start", UNIT]
    with subprocess.Popen(command) as starter:
        lock = directory / f"{UNIT}.lock"
        while not (lock.exists() and lock.read_text().endswith("\n")):
            assert starter.poll() is None
        starter.send_signal(signal.SIGKILL)
    assert units.is_active(directory, UNIT)
    units.stop(directory, UNIT)
    assert not units.is_active(directory, UNIT)


def test_one_that_ends_before_it_is_ready_is_said(directory: Path) -> None:
    units.define(directory, UNIT, [sys.executable, "-c", "raise SystemExit(3)"])
    ended = systemctl(directory, "start", UNIT)
    assert ended.returncode == 1
    assert "any.service ended with status 3" in ended.stderr


def test_one_that_died_is_not_active(directory: Path) -> None:
    assert systemctl(directory, "start", UNIT).returncode == 0
    number = int((directory / f"{UNIT}.lock").read_text())
    os.kill(number, signal.SIGKILL)
    with (directory / f"{UNIT}.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
    assert not units.is_active(directory, UNIT)


def test_an_unknown_verb_is_said(directory: Path) -> None:
    ended = systemctl(directory, "enable", UNIT)
    assert ended.returncode == 1
    assert "known are start, stop and show" in ended.stderr
