"""The unit files as systemd itself reads and judges them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mgpu.config.model import ServerConfig
from tests.support.systemd import CHECKOUT

UNITS = CHECKOUT / "deploy" / "systemd"
SERVICE = UNITS / "mgpu.service"
MAX_EXPOSURE = 1.6

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def setting(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", SERVICE.read_text(), re.MULTILINE)


@needs_systemd
@pytest.mark.parametrize("unit", ["mgpu.service", "mgpu.socket"])
def test_systemd_has_no_complaint_about_the_unit(unit: str, tmp_path: Path) -> None:
    for source in UNITS.glob("mgpu.*"):
        text = source.read_text().replace("/opt/mgpu/bin/mgpu", shutil.which("true") or "")
        (tmp_path / source.name).write_text(text)
    done = subprocess.run(
        ("systemd-analyze", "verify", "--man=no", str(tmp_path / unit)),
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if "mgpu" in line]
    assert (complaints, done.returncode) == ([], 0)


@needs_systemd
def test_the_service_is_exposed_as_little_as_its_work_allows() -> None:
    done = subprocess.run(
        ("systemd-analyze", "security", "--offline=yes", "--no-pager", str(SERVICE)),
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"exposure level for mgpu\.service: ([0-9.]+)", done.stdout)
    assert found, done.stdout
    assert float(found[1]) <= MAX_EXPOSURE


@pytest.mark.parametrize("name", ["PrivateDevices", "ProtectProc", "ProcSubset", "PrivateNetwork"])
def test_nothing_hides_the_gpus_or_their_processes(name: str) -> None:
    assert setting(name) == []


def test_stopping_is_given_longer_than_draining_takes() -> None:
    [timeout] = setting("TimeoutStopSec")
    assert int(timeout) >= ServerConfig().drain_timeout_s + 10
