from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mgpu.errors import StorageFull
from mgpu.store.fence import SqliteFenceStore
from mgpu.store.unloaded import UnloadedStore
from mgpu.store.writer import Writer


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    store = SqliteFenceStore(tmp_path / "jobs.db")
    yield store.path
    store.close()


@contextmanager
def run(path: Path) -> Iterator[UnloadedStore]:
    """A store for as long as a broker would run."""
    with closing(Writer(path)) as writer:
        yield UnloadedStore(writer)


def kept(path: Path) -> dict[str, str]:
    with run(path) as store:
        return dict(store)


def test_what_was_unloaded_and_not_loaded_since_is_there_at_the_next_start(path: Path) -> None:
    with run(path) as store:
        store["llm"] = "run 1"
        store["tts"] = "run 7"
        del store["llm"]
        assert store.pop("stt", None) is None
    assert kept(path) == {"tts": "run 7"}


def test_the_last_run_counts(path: Path) -> None:
    for asked in ("run 1", "run 1", "run 2"):
        with run(path) as store:
            store["llm"] = asked
    assert kept(path) == {"llm": "run 2"}


def test_what_cannot_be_written_is_known_until_the_end_and_said(path: Path) -> None:
    with capture_logs() as written, run(path) as store:
        for file in path.parent.glob("jobs.db*"):
            file.unlink()
        path.parent.rmdir()
        store["llm"] = "run 1"
        assert store["llm"] == "run 1"
    assert [line["event"] for line in written] == ["what a service was asked last is not kept"]


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageFull), run(tmp_path / "missing" / "jobs.db"):
        pytest.fail("read")
