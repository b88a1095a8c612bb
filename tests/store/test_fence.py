from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from mgpu.errors import ConfigError, StorageFull
from mgpu.store.fence import SqliteFenceStore, database_path


@contextmanager
def opened(path: Path) -> Iterator[SqliteFenceStore]:
    with closing(SqliteFenceStore(path)) as store:
        yield store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "mgpu" / "jobs.db"


def test_blocks_follow_each_other_without_overlap(path: Path) -> None:
    with opened(path) as store:
        assert [store.reserve(100), store.reserve(1), store.reserve(100)] == [1, 101, 102]


def test_tokens_go_on_growing_after_a_restart(path: Path) -> None:
    with opened(path) as store:
        store.reserve(1000)
    with opened(path) as store:
        assert store.reserve(10) == 1001


def test_tokens_go_on_growing_after_a_kill_right_after_a_reservation(path: Path) -> None:
    program = (
        "import sys, time, pathlib\n"
        "from mgpu.store.fence import SqliteFenceStore\n"
        "store = SqliteFenceStore(pathlib.Path(sys.argv[1]))\n"
        "print(store.reserve(1000), flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as broker:
        assert broker.stdout is not None
        first = int(broker.stdout.readline())
        broker.kill()
        assert broker.wait(timeout=10) == -signal.SIGKILL
    with opened(path) as store:
        assert store.reserve(1) == first + 1000


def test_a_second_broker_on_the_same_file_gets_other_tokens(path: Path) -> None:
    with opened(path) as one, opened(path) as other:
        assert one.reserve(100) == 1
        assert other.reserve(100) == 101
        assert one.reserve(100) == 201


def test_threads_and_brokers_at_once_never_get_the_same_token(path: Path) -> None:
    firsts: list[int] = []
    with opened(path) as one, opened(path) as other:

        def reserve(store: SqliteFenceStore) -> None:
            firsts.extend(store.reserve(10) for _ in range(10))

        threads = [threading.Thread(target=reserve, args=(store,)) for store in (one, other) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
    assert sorted(firsts) == list(range(1, 401, 10))


@pytest.mark.parametrize("count", [0, -1])
def test_less_than_one_token_cannot_be_reserved(path: Path, count: int) -> None:
    with opened(path) as store, pytest.raises(ValueError, match=f"cannot reserve {count}"):
        store.reserve(count)


def test_commits_are_flushed_to_the_disk(path: Path) -> None:
    full = 2
    with opened(path) as store:
        assert store._connection.execute("PRAGMA synchronous").fetchone() == (full,)
        assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_files_are_for_their_owner_alone(path: Path) -> None:
    umask = os.umask(0)
    try:
        with opened(path) as store:
            store.reserve(1)
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(umask)
    assert modes == {"jobs.db": 0o600, "jobs.db-wal": 0o600, "jobs.db-shm": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_full_disk_at_a_reservation_is_told_and_recovered_from(path: Path) -> None:
    program = (
        "import os, pathlib, resource, signal, sys\n"
        "from mgpu.errors import StorageFull\n"
        "from mgpu.store.fence import SqliteFenceStore\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "store = SqliteFenceStore(path)\n"
        "store.reserve(10)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))\n"
        "try:\n"
        "    store.reserve(10)\n"
        "except StorageFull as error:\n"
        "    os.write(1, f'{error}\\n'.encode())\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))\n"
        "print(store.reserve(10))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    told, first = done.stdout.splitlines()
    assert told.startswith(f"{path}: cannot be written: ")
    assert int(first) == 11


def test_a_disk_that_is_full_from_the_start_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect

    def connect_with_one_page(*args: object, **kwargs: object) -> sqlite3.Connection:
        connection = connect(*args, **kwargs)  # type: ignore[call-overload]
        assert isinstance(connection, sqlite3.Connection)
        connection.execute("PRAGMA max_page_count = 1")
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect_with_one_page)
    with pytest.raises(StorageFull, match=r"jobs\.db: cannot be written: .*full"):
        SqliteFenceStore(path)


def test_a_reservation_that_cannot_be_locked_in_time_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mgpu.store.fence._BUSY_TIMEOUT_S", 0.01)
    with opened(path) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageFull, match="locked"):
            store.reserve(1)
        other.execute("ROLLBACK")
        assert store.reserve(1) == 1


def test_a_file_that_is_no_database_is_named(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"hello" * 1000)
    with pytest.raises(ConfigError, match=rf"{path}: not a healthy SQLite database"):
        SqliteFenceStore(path)
    assert path.read_bytes() == b"hello" * 1000


def test_a_damaged_database_is_named(path: Path) -> None:
    with opened(path):
        pass
    content = bytearray(path.read_bytes())
    second_page = slice(4096, 4096 + 100)
    content[second_page] = b"\xff" * 100
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{path}: .*(damaged|not a healthy)"):
        SqliteFenceStore(path)


def test_a_database_without_its_row_is_named_rather_than_starting_from_0(path: Path) -> None:
    with opened(path) as store:
        store._connection.execute("DELETE FROM fence")
    with pytest.raises(ConfigError, match=rf"{path}: the fencing token's row is missing"):
        SqliteFenceStore(path)


def test_a_database_of_another_program_is_left_as_it_is(path: Path) -> None:
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE diary (day TEXT)")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=rf"{path}: .* belongs to another program"):
        SqliteFenceStore(path)
    assert path.read_bytes() == before


def test_a_database_of_a_newer_version_is_refused(path: Path) -> None:
    with opened(path) as store:
        store._connection.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match=rf"{path}: made by a newer mgpu \(version 99"):
        SqliteFenceStore(path)


def test_an_empty_file_becomes_the_database(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.touch()
    with opened(path) as store:
        assert store.reserve(1) == 1


@pytest.mark.parametrize("occupied", ["state", "state/mgpu/jobs.db"])
def test_a_path_that_cannot_be_a_file_is_named(tmp_path: Path, occupied: str, path: Path) -> None:
    if occupied == "state":
        (tmp_path / "state").touch()
    else:
        path.mkdir(parents=True)
    with pytest.raises(ConfigError, match=rf"{path}: cannot be opened"):
        SqliteFenceStore(path)


@pytest.mark.parametrize(
    ("configured", "environ", "expected"),
    [
        (Path("/x/y.db"), {"STATE_DIRECTORY": "/s"}, "/x/y.db"),
        (None, {"STATE_DIRECTORY": "/s", "XDG_STATE_HOME": "/xdg"}, "/s/jobs.db"),
        (None, {"STATE_DIRECTORY": "/s:/t"}, "/s/jobs.db"),
        (None, {"XDG_STATE_HOME": "/xdg", "HOME": "/h"}, "/xdg/mgpu/jobs.db"),
        (None, {"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/mgpu/jobs.db"),
        (None, {"STATE_DIRECTORY": "", "HOME": "/h"}, "/h/.local/state/mgpu/jobs.db"),
        (None, {}, str(Path.home() / ".local/state/mgpu/jobs.db")),
    ],
)
def test_the_database_is_where_the_system_keeps_state_unless_configured(
    configured: Path | None, environ: dict[str, str], expected: str
) -> None:
    assert database_path(configured, environ) == Path(expected)
