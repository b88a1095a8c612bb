from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from mgpu.core.model import ByHand
from mgpu.errors import StorageFull
from mgpu.store import by_hand as module
from mgpu.store.by_hand import ByHandStore
from mgpu.store.fence import SqliteFenceStore
from mgpu.store.writer import Writer

SOON_S = 10.0


class HandClock:
    """The monotonic clock of one run; each begins somewhere else."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def now(self) -> float:
        return self.now_s


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    store = SqliteFenceStore(tmp_path / "jobs.db")
    yield store.path
    store.close()


@pytest.fixture
def day(monkeypatch: pytest.MonkeyPatch) -> HandClock:
    """The time of day."""
    clock = HandClock(1_764_316_800.0)
    monkeypatch.setattr(time, "time", clock.now)
    return clock


@contextmanager
def run(path: Path, now_s: float = 50.0) -> Iterator[ByHandStore]:
    """One run of the broker, which ends in order."""
    with closing(Writer(path)) as writer:
        yield ByHandStore(writer, HandClock(now_s))


def loaded(path: Path, *, now_s: float = 50.0, **configured: bool) -> ByHand:
    with run(path, now_s) as store:
        return store.load(configured)


def said(written: list[Any]) -> list[tuple[str, str]]:
    return [(line["event"].partition(":")[0], line.get("consumer", "")) for line in written]


def test_at_first_nobody_has_asked_for_anything(path: Path) -> None:
    with capture_logs() as written:
        assert loaded(path, a=True, b=False) == ByHand()
    assert not written


@pytest.mark.parametrize("boot_s", [1_000_000.0, 3.0])
def test_a_pause_is_as_old_as_it_is_whatever_the_monotonic_clock_shows(
    path: Path, day: HandClock, boot_s: float
) -> None:
    with run(path, now_s=50.0) as store:
        store.keep(ByHand(paused_at=40.0))
    day.now_s += 3600.0
    with capture_logs() as written:
        assert loaded(path, now_s=boot_s).paused_at == boot_s - 3610.0
    [line] = written
    assert (line["since"], line["log_level"]) == ("2025-11-28T07:59:50+00:00", "warning")


def test_a_pause_is_not_in_the_future_when_the_time_of_day_was_set_back(
    path: Path, day: HandClock
) -> None:
    with run(path) as store:
        store.keep(ByHand(paused_at=50.0))
    day.now_s -= 3600.0
    assert loaded(path, now_s=60.0) == ByHand(paused_at=60.0)


def test_what_is_kept_takes_the_place_of_what_was(path: Path) -> None:
    with run(path) as store:
        store.keep(ByHand(50.0, {"a": True, "b": True}))
        store.keep(ByHand(None, {"a": True, "c": False}))
    assert loaded(path, a=False, b=False, c=True) == ByHand(pins={"a": True, "c": False})


def test_a_pin_of_who_is_not_configured_any_more_is_forgotten_for_good(path: Path) -> None:
    with run(path) as store:
        store.keep(ByHand(pins={"gone": True, "here": True}))
    with capture_logs() as written:
        assert loaded(path, here=False) == ByHand(pins={"here": True})
    assert said(written) == [("pinned still", "here"), ("a pin by hand is forgotten", "gone")]
    assert loaded(path, here=False, gone=False) == ByHand(pins={"here": True})


def test_a_pin_that_the_configuration_has_taken_over_goes_with_it_from_then_on(path: Path) -> None:
    with run(path) as store:
        store.keep(ByHand(pins={"a": True, "b": False}))
    assert loaded(path, a=True, b=False) == ByHand()
    assert loaded(path, a=False, b=True) == ByHand()


async def test_written_returns_when_it_is_on_the_disk(path: Path) -> None:
    with run(path) as store:
        await store.written()
        store.keep(ByHand(paused_at=1.0))
        await store.written()
        with closing(sqlite3.connect(path)) as other:
            assert other.execute("SELECT count(*) FROM pause").fetchone() == (1,)


async def test_who_waits_for_the_disk_and_leaves_takes_nothing_along(path: Path) -> None:
    gate = threading.Event()
    with closing(Writer(path)) as writer:
        store = ByHandStore(writer, HandClock(50.0))
        writer.put(lambda _connection: gate.wait(SOON_S), lost="a gate")
        store.keep(ByHand(pins={"a": True}))
        waiting = asyncio.create_task(store.written())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        gate.set()
    assert loaded(path, a=False) == ByHand(pins={"a": True})


async def test_a_disk_that_hangs_holds_up_nobody_for_long(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WRITTEN_TIMEOUT_S", 0.01)
    gate = threading.Event()
    with closing(Writer(path)) as writer:
        store = ByHandStore(writer, HandClock(50.0))
        writer.put(lambda _connection: gate.wait(SOON_S), lost="a gate")
        store.keep(ByHand(pins={"a": True}))
        with capture_logs() as written:
            async with asyncio.timeout(SOON_S):
                await store.written()
        assert said(written) == [("the disk hangs", "")]
        gate.set()


async def test_what_cannot_be_written_is_said_and_waited_for_by_nobody(tmp_path: Path) -> None:
    with capture_logs() as written, run(tmp_path / "missing" / "jobs.db") as store:
        store.keep(ByHand(paused_at=1.0))
        async with asyncio.timeout(SOON_S):
            await store.written()
    assert said(written) == [("what was asked for by hand is not kept", "")]


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageFull):
        loaded(tmp_path / "missing" / "jobs.db")


def test_a_database_of_the_version_before_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with closing(SqliteFenceStore(path)) as store:
        store.reserve(7)
        store._connection.executescript(
            "DROP TABLE models; DROP TABLE unloaded; DROP TABLE pause; DROP TABLE pins;"
            "PRAGMA user_version = 2"
        )
    with closing(SqliteFenceStore(path)) as store:
        assert store.reserve(1) == 8
        with run(path) as kept:
            kept.keep(ByHand(pins={"a": True}))
        assert loaded(path, a=False) == ByHand(pins={"a": True})
