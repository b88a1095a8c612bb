"""How far fencing tokens have been given out, in an SQLite file that outlives the broker.

Only the high-water mark is stored. A broker reserves tokens in blocks: the mark is moved past the
block and is on the disk before its first token is used, so a crash loses unused tokens and never
repeats a used one. Brokers that share a file by mistake get different blocks, as the move is one
transaction.

The journal is a WAL with ``synchronous=FULL``: every commit is flushed, where ``NORMAL`` may lose
the last ones with the power (https://www.sqlite.org/pragma.html#pragma_synchronous).
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from importlib import resources
from pathlib import Path

from mgpu.errors import ConfigError, StorageFull

FILE_NAME = "jobs.db"

_BUSY_TIMEOUT_S = 5.0

_APPLICATION_ID = 0x6D677075  # "mgpu" in ASCII, in the file's header.

_MIGRATIONS = ("schema.sql", "measurements.sql", "by_hand.sql", "models.sql", "unloaded.sql")
"""The n-th of these files (from 1) brings a database of version n - 1 to version n."""


def database_path(configured: Path | None, environ: Mapping[str, str]) -> Path:
    """Where the database is: as configured, else where the system keeps a program's state.

    That is ``$STATE_DIRECTORY`` (systemd's ``StateDirectory=``; the first if there are several),
    else ``mgpu`` in ``$XDG_STATE_HOME``, which is ``~/.local/state`` unless it is an absolute path.
    """
    if configured is not None:
        return configured.expanduser()
    if directories := environ.get("STATE_DIRECTORY"):
        return Path(directories.split(":")[0]) / FILE_NAME
    state_home = Path(environ.get("XDG_STATE_HOME", ""))
    if not state_home.is_absolute():
        home = Path(environ["HOME"]) if environ.get("HOME") else Path.home()
        state_home = home / ".local" / "state"
    return state_home / "mgpu" / FILE_NAME


class SqliteFenceStore:
    """The fence in the file ``path``, which is made (for its owner alone) when it is missing.

    Raises ``errors.ConfigError`` when the file cannot be opened or is not such a database, and
    ``errors.StorageFull`` when the disk has no room for a new one. May be used from any thread.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with _opening(path):
            _create_private(path)
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            try:
                _prepare(self._connection, path)
            except BaseException:
                self._connection.close()
                raise

    @property
    def path(self) -> Path:
        """The file, for others who keep something in it."""
        return self._path

    def reserve(self, count: int) -> int:
        """The first of ``count`` tokens, all greater than any ever reserved; on disk on return.

        Raises ``errors.StorageFull`` when it cannot be written; a later call may succeed.
        """
        if count < 1:
            raise ValueError(f"cannot reserve {count} tokens")
        with self._lock:
            try:
                with _transaction(self._connection):
                    [high_water] = self._connection.execute(
                        "UPDATE fence SET high_water = high_water + ? RETURNING high_water",
                        (count,),
                    ).fetchone()
            except sqlite3.Error as error:
                raise StorageFull(f"{self._path}: cannot be written: {error}") from error
        return int(high_water) - count + 1

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()


@contextmanager
def _opening(path: Path) -> Iterator[None]:
    """Turn what goes wrong while ``path`` is opened into an error that names it."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path}: cannot be opened: {error.strerror}") from error
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise StorageFull(f"{path}: cannot be written: {error}") from error
        raise ConfigError(f"{path}: cannot be opened: {error}") from error
    except sqlite3.DatabaseError as error:
        raise ConfigError(f"{path}: not a healthy SQLite database: {error}") from error


def _create_private(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # An existing file is not opened: closing any descriptor of a database would drop the locks
    # that this process holds on it (https://www.sqlite.org/howtocorrupt.html, section 2.2).
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    _refuse_foreign(connection, path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    _migrate(connection)
    with closing(connection.execute("PRAGMA quick_check(1)")) as check:
        [verdict] = check.fetchone()
    if verdict != "ok":
        raise ConfigError(f"{path}: the database is damaged: {verdict}")
    if connection.execute("SELECT count(*) FROM fence").fetchone() != (1,):
        raise ConfigError(f"{path}: the fencing token's row is missing")


def _refuse_foreign(connection: sqlite3.Connection, path: Path) -> None:
    application_id = _pragma(connection, "application_id")
    [tables] = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application_id != _APPLICATION_ID and (application_id or tables):
        raise ConfigError(f"{path}: this SQLite database belongs to another program")
    version = _pragma(connection, "user_version")
    if version > len(_MIGRATIONS):
        raise ConfigError(
            f"{path}: made by a newer mgpu (version {version} of the database, "
            f"{len(_MIGRATIONS)} is the newest known here)"
        )


def _migrate(connection: sqlite3.Connection) -> None:
    with _transaction(connection):
        version = _pragma(connection, "user_version")
        for number, name in enumerate(_MIGRATIONS[version:], start=version + 1):
            script = resources.files("mgpu.store").joinpath(name).read_text(encoding="utf-8")
            for statement in _statements(script):
                connection.execute(statement)
            # A PRAGMA takes no parameters; both values are constants of this module.
            connection.execute(f"PRAGMA user_version = {number}")
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")


def _statements(script: str) -> Iterator[str]:
    # Not executescript(): that commits first, and the migration is to be one transaction.
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite rolls some failures back by itself (https://www.sqlite.org/lang_transaction.html).
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    [value] = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)
