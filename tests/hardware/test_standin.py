"""The GPU's tests are right where there is no GPU: they pass on the stand-in, and skip without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 180
"""Ten tests, each with processes of its own, on a machine that may have others to serve."""

pytestmark = pytest.mark.timeout(TIMEOUT_S)


def run_gpu_tests(**env: str) -> str:
    """What pytest printed; it must have ended well."""
    command = [sys.executable, "-m", "pytest", "tests/hardware", "-m", "gpu", "-rs", "-q"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S - 10,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_they_pass_on_the_standin_and_tell_their_figures() -> None:
    output = run_gpu_tests(MGPU_GPU_STANDIN="1")

    assert "6 passed" in output
    assert "| measured on Stand-in GPU 0 | |" in output


def test_they_say_why_they_are_skipped() -> None:
    output = run_gpu_tests(MGPU_TORCH_PYTHON="/nonexistent")

    assert "6 skipped" in output
    assert "no NVIDIA GPU here" in output or "no PyTorch that can use this GPU" in output
