"""What the tests of real services have in common."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.installed import PYTHON


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two small language models: `tiny.gguf` and `other.gguf`."""
    folder = tmp_path_factory.mktemp("models")
    script = Path(__file__).with_name("tiny_gguf.py")
    for name in ("tiny", "other"):
        subprocess.run([PYTHON, script, folder / f"{name}.gguf"], check=True, timeout=60)
    return folder
