"""A GPU that is not there: memory that processes write down instead of allocating.

Every process has a file of its own for each name it holds memory under, ``NAME.PID.XXXX`` in one
directory. Its length in bytes is the number of MiB held, and the process keeps it locked: setting
a length is atomic, and the lock goes with the process however that ends, as a real GPU takes the
memory of a dead process back. A process number that is used again cannot be mistaken for the old
holder. Files that nobody has locked hold nothing.

A consumer that writes no file, such as a real service tried out on a machine without a GPU, holds
what the broker believes that it does.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from mgpu.core.model import GpuReading
from mgpu.errors import GpuUnhealthy

UUID = "GPU-simulated-0"
NAME = "Simulated GPU"


class HeldMemory:
    """What this process holds on the simulated GPU, or on another one like it.

    The directory is made if need be. ``close``, and the process's end, give everything back.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._locked: dict[str, int] = {}

    def hold(self, name: str, mib: int) -> None:
        """From now on this process holds ``mib`` MiB under ``name``, whatever it did before.

        ``name`` is the consumer's. Raises ``ValueError`` for a name that cannot be a file's, or a
        negative amount, and ``OSError`` when the directory cannot be written.
        """
        if not name or name.startswith(".") or "/" in name:
            raise ValueError(f"no name to hold memory under: {name!r}")
        if mib < 0:
            raise ValueError(f"{name}: cannot hold {mib} MiB")
        if name not in self._locked:
            self._locked[name] = self._create(name)
        os.ftruncate(self._locked[name], mib)

    def close(self) -> None:
        """Give everything back."""
        while self._locked:
            os.close(self._locked.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _create(self, name: str) -> int:
        """A locked file; it gets its name after its lock, so that it is never seen without one."""
        descriptor, made = tempfile.mkstemp(prefix=f".{name}.{os.getpid()}.", dir=self._directory)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        path = Path(made)
        path.rename(path.with_name(path.name.removeprefix(".")))
        for other, mib in _files(self._directory):
            if mib is None and _name(other) == name:
                other.unlink(missing_ok=True)
        return descriptor


def held_mib(directory: Path) -> dict[str, int]:
    """MiB held in ``directory`` by name, over all processes; 0 for a name that gave all back.

    Raises ``OSError`` when it cannot be read.
    """
    held: dict[str, int] = {}
    for path, mib in _files(directory):
        held[_name(path)] = held.get(_name(path), 0) + (mib or 0)
    return held


def _name(path: Path) -> str:
    return path.name.rsplit(".", 2)[0]


def _files(directory: Path) -> Iterator[tuple[Path, int | None]]:
    """The files of ``directory`` with what they hold; those still without a lock are left out."""
    for path in directory.iterdir():
        if not path.name.startswith("."):
            yield path, _length_if_locked(path)


def _length_if_locked(path: Path) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        # Shared, so that two who ask at once do not take each other for the holder.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.fstat(descriptor).st_size
    else:
        return None
    finally:
        os.close(descriptor)


class SimulatedGpu:
    """A ``ports.GpuProbe`` with one GPU of ``total_mib``, index 0.

    ``directory`` is where processes hold memory with ``HeldMemory``; None: nowhere.
    """

    def __init__(self, total_mib: int, directory: Path | None = None) -> None:
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
        self._total_mib = total_mib
        self._directory = directory
        self._believed_mib: dict[str, int] = {}

    def believe(self, consumer: str, held_mib: int) -> None:
        """Let ``consumer`` hold ``held_mib`` MiB, unless a file of its own says otherwise.

        For the broker to call when it has loaded or unloaded one.
        """
        if held_mib < 0:
            raise ValueError(f"{consumer}: cannot hold {held_mib} MiB")
        self._believed_mib[consumer] = held_mib

    async def read(self) -> tuple[GpuReading, ...]:
        """The one GPU; more held than there is reads as 0 free.

        Raises ``errors.GpuUnhealthy`` when the directory cannot be read.
        """
        try:
            written = {} if self._directory is None else held_mib(self._directory)
        except OSError as error:
            raise GpuUnhealthy(f"the simulated GPU cannot be read: {error}") from error
        used_mib = sum((self._believed_mib | written).values())
        return (
            GpuReading(
                index=0,
                uuid=UUID,
                name=NAME,
                total_mib=self._total_mib,
                free_mib=max(0, self._total_mib - used_mib),
            ),
        )

    async def close(self) -> None:
        """Nothing is open between two reads."""
