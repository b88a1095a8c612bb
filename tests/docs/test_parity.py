from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs" / "parity.md").read_text())


def test_the_table_names_tests() -> None:
    assert len(NAMED) > 40


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_every_test_that_is_named_exists(file: str, test: str) -> None:
    path = ROOT / "tests" / file
    assert path.exists()
    assert not test or re.search(rf"def {test}\(", path.read_text()), f"no {test} in {file}"
