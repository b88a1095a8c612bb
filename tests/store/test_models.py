from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mgpu.errors import StorageFull
from mgpu.store import fence
from mgpu.store.fence import SqliteFenceStore
from mgpu.store.models import ModelStore
from mgpu.store.writer import Writer


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    store = SqliteFenceStore(tmp_path / "jobs.db")
    yield store.path
    store.close()


def kept(path: Path, *rows: tuple[str, tuple[str, ...]], fingerprint: str = "one") -> None:
    writer = Writer(path)
    store = ModelStore(writer, {name: fingerprint for name, _ in rows})
    for row in rows:
        store.keep(*row)
    writer.close()


def loaded(path: Path, **fingerprints: str) -> dict[str, tuple[str, ...]]:
    writer = Writer(path)
    try:
        return ModelStore(writer, fingerprints).load()
    finally:
        writer.close()


def test_what_was_told_is_there_at_the_next_start_in_its_order(path: Path) -> None:
    kept(path, ("llm", ("small", "org/big:7b", "größer")), ("tts", ("voice",)))

    assert loaded(path, llm="one", tts="one") == {
        "llm": ("small", "org/big:7b", "größer"),
        "tts": ("voice",),
    }


def test_the_last_word_counts(path: Path) -> None:
    kept(path, ("llm", ("small", "big")), ("llm", ("other",)))
    assert loaded(path, llm="one") == {"llm": ("other",)}


def test_of_another_consumer_by_that_name_nothing_is_known(path: Path) -> None:
    kept(path, ("llm", ("small",)))
    assert loaded(path, llm="two") == {}
    assert loaded(path) == {}
    kept(path, ("llm", ("big",)), fingerprint="two")
    assert loaded(path, llm="one") == {}


def test_what_one_tells_that_is_not_known_any_more_is_not_kept(path: Path) -> None:
    writer = Writer(path)
    store = ModelStore(writer, {"llm": "one"})
    store.configure({})
    store.keep("llm", ("small",))
    writer.close()
    assert loaded(path, llm="one") == {}


def test_what_cannot_be_written_is_given_up_and_said(tmp_path: Path) -> None:
    with capture_logs() as written:
        kept(tmp_path / "missing" / "jobs.db", ("llm", ("small",)))
    [line] = written
    assert (line["event"], line["consumer"]) == ("a list of models is not kept", "llm")


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageFull):
        loaded(tmp_path / "missing" / "jobs.db")


def test_a_database_from_before_is_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr(fence, "_MIGRATIONS", ("schema.sql", "measurements.sql", "by_hand.sql"))
        SqliteFenceStore(tmp_path / "old.db").close()

    store = SqliteFenceStore(tmp_path / "old.db")
    kept(store.path, ("llm", ("small",)))
    store.close()

    assert loaded(store.path, llm="one") == {"llm": ("small",)}
