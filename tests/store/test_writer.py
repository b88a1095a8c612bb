from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mgpu.store import writer as module
from mgpu.store.writer import Writer

SOON_S = 10.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "jobs.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE words (word TEXT NOT NULL)")
    return path


def words(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [word for [word] in connection.execute("SELECT word FROM words ORDER BY rowid")]


def say(writer: Writer, *some: str | None) -> None:
    def write(connection: sqlite3.Connection) -> None:
        for word in some:
            connection.execute("INSERT INTO words VALUES (?)", (word,))

    writer.put(write, lost="words are lost", first=str(some[0])).result(SOON_S)


def test_what_is_put_is_on_the_disk_when_it_is_over(path: Path) -> None:
    with closing(Writer(path)) as writer:
        say(writer, "one")
        say(writer, "two")
        assert words(path) == ["one", "two"]


def test_what_waits_is_written_before_it_closes(path: Path) -> None:
    gate = threading.Event()
    writer = Writer(path)
    writer.put(lambda _connection: gate.wait(SOON_S), lost="a gate")
    last = writer.put(lambda c: c.execute("INSERT INTO words VALUES ('last')"), lost="a word")
    gate.set()
    writer.close()
    assert last.done()
    assert words(path) == ["last"]


def test_what_fails_leaves_nothing_is_said_and_holds_up_nobody(path: Path) -> None:
    with capture_logs() as written, closing(Writer(path)) as writer:
        say(writer, "half", None)
        say(writer, "whole")
    assert words(path) == ["whole"]
    assert [(line["event"], line["first"]) for line in written] == [("words are lost", "half")]
    assert "NOT NULL" in written[0]["error"]


def test_on_a_disk_that_hangs_no_more_than_a_bound_waits(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 1)
    gate, hangs = threading.Event(), threading.Event()

    def hang(_connection: sqlite3.Connection) -> None:
        hangs.set()
        gate.wait(SOON_S)

    with capture_logs() as written, closing(Writer(path)) as writer:
        writer.put(hang, lost="a gate")
        assert hangs.wait(SOON_S)
        waits = writer.put(lambda _connection: None, lost="the one that may wait")
        too_many = writer.put(lambda _connection: None, lost="the one too many")
        assert (too_many.done(), waits.done()) == (True, False)
        gate.set()
        waits.result(SOON_S)
    assert [line["event"] for line in written] == ["the one too many"]
