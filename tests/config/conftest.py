import os
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from mgpu.config.load import load
from mgpu.config.model import Config
from mgpu.config.problems import InvalidConfig

Write = Callable[[str], Path]
Problems = Callable[[str], list[str]]
Load = Callable[[str], Config]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("MGPU_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_broker_yaml(text: str) -> Path:
        path = tmp_path / "broker.yaml"
        path.write_text(dedent(text), encoding="utf-8")
        return path

    return write_broker_yaml


@pytest.fixture
def loaded(write: Write) -> Load:
    return lambda text: load(write(text))


@pytest.fixture
def problems(write: Write, tmp_path: Path) -> Problems:
    """What is wrong with a text, each as ``LINE: KEY: MESSAGE``."""

    def problems_of(text: str) -> list[str]:
        with pytest.raises(InvalidConfig) as raised:
            load(write(text))
        return [str(one).removeprefix(f"{tmp_path}/broker.yaml:") for one in raised.value.problems]

    return problems_of
