"""Whose process it is that holds a GPU's memory.

A consumer is recognised by where it runs: the control group of its systemd unit, its container, or
the process that listens on its port. Its processes are those in that control group or below it,
and that process with its descendants: many services compute in a child of the one that listens
(ollama's runner, vLLM's engine, workers of gunicorn). The closest match counts.

Process numbers are used again, so what was found out about one holds for that number and start
time together. What cannot be seen (``hidepid``, another PID namespace) is no consumer's, and has no
name. A process that listens for several consumers is of neither: of all of them it is then not
known what they hold. Nor is it of one that no process was ever found of, or that has one which does
not tell; the others hold what is found, be that nothing.

Sources: cgroups(7), proc_pid_stat(5) (``starttime``), proc_net_tcp(5).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mgpu.core.model import GpuReading
from mgpu.gpu import control_groups
from mgpu.gpu.thread import Reader
from mgpu.ports import Whereabouts

RETRY_S = 1.0
"""How often it is asked anew whose a process is that was nobody's: a service listens only some
time after it has started, and a unit's control group is not known at once."""

_MOST_ANCESTORS = 32
_LISTEN = "0A"
_MANAGERS = frozenset({"systemd", "init"})
"""Names of programs that listen for others (socket activation) and are everybody's ancestor."""


@dataclass(frozen=True, slots=True)
class Process:
    """One entry of /proc."""

    pid: int
    parent: int
    started: int
    """In clock ticks since the system's start."""
    name: str


@dataclass(slots=True)
class _Known:
    started: int
    name: str
    owners: frozenset[str]
    asked_at: float


def process(pid: int, proc: Path = Path("/proc")) -> Process | None:
    """What /proc says of a process; None when it is gone or hidden."""
    try:
        text = (proc / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The name is in parentheses and may hold any character, parentheses too.
    name, rest = text.split("(", 1)[1].rsplit(")", 1)
    fields = rest.split()
    return Process(pid, parent=int(fields[1]), started=int(fields[19]), name=name)


def listening(port: int, proc: Path = Path("/proc")) -> frozenset[str]:
    """The inodes of the sockets that listen on a TCP port of this machine."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rsplit(":", 1)[1], 16) == port:
                inodes.add(fields[9])
    return frozenset(inodes)


def listener(port: int | None, proc: Path = Path("/proc")) -> str:
    """What tells who listens on a TCP port of this machine from who did before; empty: nobody.

    Who begins to listen makes a socket. Its inode's number (``proc_net_tcp(5)``) is everybody's to
    see, and hardly given again until the system's next start.
    """
    inodes = listening(port, proc) if port is not None else frozenset()
    if not inodes:
        return ""
    boot = (proc / "sys/kernel/random/boot_id").read_text().strip()
    return " ".join((boot, *sorted(inodes)))


class AttributingReader:
    """A reader that adds to another one's readings whose the processes are; for its thread.

    ``places`` tells where the consumers run at present; it is called on that thread and must not
    block.
    """

    def __init__(
        self,
        reader: Reader,
        places: Callable[[], Mapping[str, Whereabouts]],
        *,
        proc: Path = Path("/proc"),
    ) -> None:
        self._reader = reader
        self._places = places
        self._proc = proc
        self._known: dict[int, _Known] = {}
        self._last_places: Mapping[str, Whereabouts] = {}
        self._seen: set[str] = set()

    def read(self) -> tuple[GpuReading, ...]:
        """As the other reader does, with ``held_mib`` and ``foreign`` filled in."""
        readings = self._reader.read()
        pids = {p.pid for r in readings for p in r.processes or ()}
        self._look_at(pids)
        # A process that holds memory of one GPU may be another consumer's reason on the next.
        unclear = {
            owner
            for known in self._known.values()
            for owner in known.owners
            if len(known.owners) > 1
        }
        return tuple(self._attributed(reading, unclear) for reading in readings)

    def close(self) -> None:
        """Close the other reader."""
        self._reader.close()

    def _look_at(self, pids: set[int]) -> None:
        now, places = time.monotonic(), self._places()
        if places != self._last_places:
            # A unit that began, or moved: what was nobody's may be somebody's now.
            self._last_places = places
            self._known = {pid: k for pid, k in self._known.items() if len(k.owners) == 1}
        self._known = {pid: known for pid, known in self._known.items() if pid in pids}
        search: _Search | None = None
        for pid in pids:
            seen = process(pid, self._proc)
            if seen is None:
                self._known[pid] = _Known(-1, "", frozenset(), now)
                continue
            known = self._known.get(pid)
            same = known is not None and known.started == seen.started
            if known is not None and same and (known.owners or now - known.asked_at < RETRY_S):
                continue
            search = search or _Search(places, self._proc)
            owners = search.owners(seen)
            self._known[pid] = _Known(seen.started, seen.name, owners, now)
            if len(owners) == 1:
                self._seen |= owners

    def _attributed(self, reading: GpuReading, unclear: set[str]) -> GpuReading:
        if reading.processes is None:
            return reading
        held = dict.fromkeys(self._seen - unclear, 0)
        foreign = []
        for entry in reading.processes:
            known = self._known[entry.pid]
            for owner in known.owners & held.keys():
                if entry.mib is None:
                    del held[owner]
                else:
                    held[owner] += entry.mib
            if not known.owners:
                foreign.append(replace(entry, name=known.name))
        return replace(reading, held_mib=held, foreign=tuple(foreign))


class _Search:
    """One look at where the consumers are; sockets are looked up only when it comes to them."""

    def __init__(self, places: Mapping[str, Whereabouts], proc: Path) -> None:
        self._places = places
        self._proc = proc
        self._inodes: dict[str, frozenset[str]] | None = None

    def owners(self, seen: Process) -> frozenset[str]:
        """The consumers whose process it is: one, none, or several that cannot be told apart."""
        return self._by_group(seen.pid) or self._by_ancestor(seen)

    def _by_group(self, pid: int) -> frozenset[str]:
        try:
            text = (self._proc / str(pid) / "cgroup").read_text()
        except OSError:
            return frozenset()
        found: dict[str, int] = {}
        for group in control_groups.paths(text):
            containers = control_groups.containers(group)
            for name, place in self._places.items():
                own = containers.get(place.container, place.control_group)
                if control_groups.is_within(group, own):
                    found[name] = max(found.get(name, 0), len(own))
        closest = max(found.values(), default=0)
        return frozenset(name for name, depth in found.items() if depth == closest)

    def _by_ancestor(self, seen: Process) -> frozenset[str]:
        for ancestor in self._line(seen):
            sockets = self._sockets(ancestor.pid)
            owners = frozenset(
                name
                for name, place in self._places.items()
                if ancestor.pid == place.root_pid or sockets & self._listening()[name]
            )
            if owners:
                return owners
        return frozenset()

    def _line(self, seen: Process) -> Iterator[Process]:
        """A process and its ancestors, up to the service manager."""
        current: Process | None = seen
        for _ in range(_MOST_ANCESTORS):
            if current is None or current.pid <= 1 or current.name in _MANAGERS:
                return
            yield current
            current = process(current.parent, self._proc)

    def _listening(self) -> dict[str, frozenset[str]]:
        if self._inodes is None:
            self._inodes = {
                name: listening(place.port, self._proc) if place.port else frozenset()
                for name, place in self._places.items()
            }
        return self._inodes

    def _sockets(self, pid: int) -> frozenset[str]:
        """The inodes of a process's sockets; none when they are hidden."""
        if not any(self._listening().values()):
            return frozenset()
        inodes = set()
        try:
            for entry in (self._proc / str(pid) / "fd").iterdir():
                try:
                    target = str(entry.readlink())
                except OSError:
                    continue
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
        except OSError:
            return frozenset()
        return frozenset(inodes)
