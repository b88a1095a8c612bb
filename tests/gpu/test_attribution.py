"""Real processes that hold memory on the stand-in GPU, and whose they are found to be."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mgpu.consumers.container import Container
from mgpu.core.model import GpuProcess, GpuReading
from mgpu.gpu import attribution
from mgpu.gpu.attribution import AttributingReader
from mgpu.ports import Whereabouts
from tests.support.engine import Engine
from tests.support.engines import (
    ENGINES,
    DockerdOnVersion2,
    DockerdUnderSystemd,
    docker,
    podman,
    running,
)
from tests.support.processes import LineChild
from tests.support.systemd import Systemd, missing, systemd
from tests.support.systemd import running as running_systemd

__all__ = ["docker", "podman", "systemd"]

ID = "0123456789abcdef" * 4

_SERVICE = """
import os, socket, subprocess, sys
ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
child = subprocess.Popen(["sleep", "60"])
print(*[s.getsockname()[1] for s in ports], child.pid, flush=True)
sys.stdin.read()
child.kill()
child.wait()
"""


class Listed:
    """A reader of one GPU with these processes."""

    def __init__(self, *processes: tuple[int, int | None]) -> None:
        self.processes: Sequence[tuple[int, int | None]] = processes
        self.tells = True

    def read(self) -> tuple[GpuReading, ...]:
        found = tuple(GpuProcess(pid, mib) for pid, mib in self.processes)
        return (GpuReading(index=0, processes=found if self.tells else None),)

    def close(self) -> None:
        pass


@contextmanager
def service(ports: int = 1) -> Iterator[tuple[int, list[int], int]]:
    """One that listens and computes in a child: its pid, its ports and the child's pid."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVICE, str(ports)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        *numbers, child = map(int, process.stdout.readline().split())
        try:
            yield process.pid, numbers, child
        finally:
            LineChild(process).end_input()
            process.wait(timeout=10)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attribution, "RETRY_S", 0.0)


def read(listed: Listed, **places: Whereabouts) -> GpuReading:
    (reading,) = AttributingReader(listed, lambda: places).read()
    return reading


class TestPorts:
    def test_who_listens_is_told_from_who_did_before(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port = first.getsockname()[1]
            before = attribution.listener(port)
            assert before
            assert attribution.listener(port) == before
        assert attribution.listener(port) == ""
        with socket.create_server(("127.0.0.1", port)):
            assert attribution.listener(port) not in {"", before}
        assert attribution.listener(None) == ""

    def test_the_one_that_listens_is_the_consumers(self) -> None:
        with service() as (pid, (port,), _):
            reading = read(Listed((pid, 900)), tts=Whereabouts(port=port))
        assert reading.held_mib == {"tts": 900}
        assert reading.foreign == ()

    def test_so_are_its_children_and_their_memory_is_summed(self) -> None:
        with service() as (pid, (port,), child):
            reading = read(Listed((pid, 500), (child, 4000)), tts=Whereabouts(port=port))
        assert reading.held_mib == {"tts": 4500}

    def test_the_others_are_foreign_with_their_programs_name(self) -> None:
        with service() as (_, (port,), child):
            reading = read(Listed((child, 700)), tts=Whereabouts(port=port + 1))
        assert reading.held_mib == {}
        assert reading.foreign == (GpuProcess(child, 700, "sleep"),)

    def test_of_one_that_listens_for_two_neither_is_known(self) -> None:
        with service(ports=2) as (pid, (one, two), _):
            reading = read(Listed((pid, 900)), tts=Whereabouts(port=one), stt=Whereabouts(port=two))
        assert reading.held_mib == {}
        assert reading.foreign == ()

    def test_one_that_begins_to_listen_later_is_found(self) -> None:
        with socket.socket() as late:
            late.bind(("127.0.0.1", 0))
            places = {"tts": Whereabouts(port=late.getsockname()[1])}
            reader = AttributingReader(Listed((os.getpid(), 900)), lambda: places)
            assert reader.read()[0].held_mib == {}
            late.listen()
            assert reader.read()[0].held_mib == {"tts": 900}

    def test_one_whose_process_has_ended_holds_nothing(self) -> None:
        with service() as (pid, (port,), _):
            listed = Listed((pid, 900))
            reader = AttributingReader(listed, lambda: {"tts": Whereabouts(port=port)})
            assert reader.read()[0].held_mib == {"tts": 900}
            listed.processes = ()
            assert reader.read()[0].held_mib == {"tts": 0}


def test_a_command_is_its_process_and_what_descends_from_it() -> None:
    with service() as (pid, _, child):
        reading = read(Listed((child, 800)), tts=Whereabouts(root_pid=pid))
    assert reading.held_mib == {"tts": 800}


def test_a_figure_that_is_not_available_makes_the_sum_unknown() -> None:
    with service() as (pid, (port,), child):
        reading = read(Listed((pid, 500), (child, None)), tts=Whereabouts(port=port))
    assert reading.held_mib == {}


def test_where_the_driver_does_not_tell_nothing_is_added() -> None:
    listed = Listed()
    listed.tells = False
    assert read(listed, tts=Whereabouts(port=1)) == GpuReading(index=0)


def test_one_that_cannot_be_seen_is_foreign_and_has_no_name() -> None:
    beyond_pid_max = 1 << 22
    reading = read(Listed((beyond_pid_max + 1, 300)), tts=Whereabouts(port=1))
    assert reading.foreign == (GpuProcess(beyond_pid_max + 1, 300, ""),)


def proc_entry(proc: Path, pid: int, *, started: int, group: str) -> None:
    """As much of /proc as is read: no real process can be made to take another one's number."""
    entry = proc / str(pid)
    entry.mkdir(parents=True, exist_ok=True)
    rest = " ".join(["S", "1", *["0"] * 17, str(started), "0"])
    (entry / "stat").write_text(f"{pid} (a) name) {rest}\n")
    (entry / "cgroup").write_text(f"0::{group}\n")


def test_a_number_that_is_used_again_is_another_process(tmp_path: Path) -> None:
    places = {"tts": Whereabouts(control_group="/system.slice/tts.service")}
    reader = AttributingReader(Listed((70, 900)), lambda: places, proc=tmp_path)
    proc_entry(tmp_path, 70, started=100, group="/system.slice/tts.service")
    assert reader.read()[0].held_mib == {"tts": 900}
    proc_entry(tmp_path, 70, started=200, group="/user.slice")
    (reading,) = reader.read()
    assert reading.held_mib == {"tts": 0}
    assert reading.foreign == (GpuProcess(70, 900, "a) name"),)


def test_a_container_is_known_by_its_id_and_the_closest_match_counts(tmp_path: Path) -> None:
    proc_entry(tmp_path, 70, started=1, group=f"/system.slice/all.service/libpod-payload-{ID}")
    places = {
        "unit": Whereabouts(control_group="/system.slice/all.service"),
        "tts": Whereabouts(container=ID),
    }
    reader = AttributingReader(Listed((70, 900)), lambda: places, proc=tmp_path)
    assert reader.read()[0].held_mib == {"tts": 900}


_INSIDE = """
import json, sys
from mgpu.core.model import GpuProcess, GpuReading
from mgpu.gpu.attribution import AttributingReader
from mgpu.ports import Whereabouts

where, *pids = sys.argv[1:]
class Listed:
    def read(self):
        return (GpuReading(index=0, processes=tuple(GpuProcess(int(p), 100) for p in pids)),)
reader = AttributingReader(Listed(), lambda: {"tts": Whereabouts(**json.loads(where))})
(reading,) = reader.read()
print(json.dumps([reading.held_mib, [p.pid for p in reading.foreign]]))
"""
"""As ``read``, to be run elsewhere: it prints what is held and who is foreign."""


def inside(pids: Sequence[object], **where: str) -> tuple[str, ...]:
    """The command that runs it for these processes and one consumer, tts."""
    python = ("env", f"PYTHONPATH={Path.cwd()}", sys.executable, "-c", _INSIDE)
    return (*python, json.dumps(where), *map(str, pids))


def test_a_units_processes_are_known_by_its_control_group(systemd: Systemd) -> None:
    systemd.write_unit(
        "worker.service",
        "[Service]\nExecStart=/bin/sh -c 'sleep 1000 & exec sleep 2000'\n",
    )
    systemd.systemctl("start", "worker.service").check_returncode()
    group = systemd.show("worker.service", "ControlGroup")
    with ExitStack() as stack:
        stack.callback(systemd.systemctl, "stop", "worker.service")
        listed = f"$(cat /sys/fs/cgroup{{,/unified,/systemd}}{group}/cgroup.procs 2>/dev/null)"
        script = f"for p in {listed}; do echo $p; done | sort -un"
        pids = systemd.run("bash", "-c", script, check=True).stdout.split()
        assert len(pids) == 2
        ended = systemd.run(*inside([*pids, "1"], control_group=group))
    assert json.loads(ended.stdout) == [{"tts": 200}, [1]], ended.stderr


# Containers


@pytest.fixture(scope="module")
def version_2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with running(DockerdOnVersion2(tmp_path_factory.mktemp("v"))) as one:
        yield one


@asynccontextmanager
async def worker(engine: Engine, name: str) -> AsyncIterator[tuple[Whereabouts, list[int]]]:
    """A container: where it is, and its processes: the first, its child, and one of an exec."""
    await engine.create(name, "/bin/sh", "-c", "sleep 1000 & exec sleep 2000")
    await engine.do(name, "start")
    one = Container(name, engine.socket, grace_s=1)
    try:
        first = (await one.state()).pid
        (child,) = await asyncio.to_thread(children, first)
        beside = await engine.execute(name, "/bin/busybox", "sleep", "3000")
        # What descends from its first process would be its own without any control group.
        yield replace((await one.state()).whereabouts, root_pid=None), [first, child, beside]
    finally:
        await one.close()
        await asyncio.to_thread(engine.remove, name)


def children(pid: int) -> list[int]:
    """The children of a process, once it has become sleep."""
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/comm").read_text() != "sleep\n":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("kind", [*ENGINES, "version_2"])
async def test_a_containers_processes_are_known_by_their_control_group(
    kind: str, request: pytest.FixtureRequest
) -> None:
    engine: Engine = request.getfixturevalue(kind)
    async with worker(engine, "tts") as (tts, own), worker(engine, "stt") as (stt, others):
        listed = Listed(*((pid, 100) for pid in own), (others[0], 900), (os.getpid(), 7))
        reading = await asyncio.to_thread(read, listed, tts=tts, stt=stt)
    assert reading.held_mib == {"tts": 300, "stt": 900}
    assert [process.pid for process in reading.foreign] == [os.getpid()]


async def test_a_container_whose_control_group_is_a_scope_of_systemds_is_known_by_it(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("s")  # shortly, as the sockets in it must not exceed 104
    with (
        running_systemd(folder, version="2") as systemd,
        running(DockerdUnderSystemd(folder, systemd)) as engine,
    ):
        await engine.create("scope", "/bin/sleep", "1000")
        await engine.do("scope", "start")
        shown = await engine.shown("scope")
        pid, identity = shown["State"]["Pid"], shown["Id"]  # as that systemd's processes count
        groups = systemd.run("cat", f"/proc/{pid}/cgroup").stdout
        ended = systemd.run(*inside([pid, 1], container=identity))
    assert f"0::/system.slice/docker-{identity}.scope\n" in groups
    assert json.loads(ended.stdout) == [{"tts": 100}, [1]], ended.stderr


async def test_from_within_another_container_they_are_known_too(docker: Engine) -> None:
    """Podman is left out: it gives no namespace of control groups of version 1."""
    async with worker(docker, "seen") as (place, pids):
        command = shlex.join(inside([*pids, os.getpid()], container=place.container))
        await docker.create(
            "seer",
            *("/bin/sh", "-c", f"cat /proc/{pids[0]}/cgroup; {command}"),
            CgroupnsMode="private",
            PidMode="host",
        )
        shown = await docker.output("seer")
        await asyncio.to_thread(docker.remove, "seer")
    *groups, found = shown.splitlines()
    assert any(f":/../{place.container}" in group for group in groups), shown
    assert json.loads(found) == [{"tts": 300}, [os.getpid()]]


def test_a_container_inside_another_one_is_the_outer_ones_too(tmp_path: Path) -> None:
    inner = ID[::-1]
    proc_entry(tmp_path, 70, started=1, group=f"/docker/{ID}/docker/{inner}")
    outer_alone = {"outer": Whereabouts(container=ID)}
    both = outer_alone | {"inner": Whereabouts(container=inner)}

    for places, held in ((outer_alone, {"outer": 900}), (both, {"inner": 900})):
        reader = AttributingReader(Listed((70, 900)), places.copy, proc=tmp_path)
        assert reader.read()[0].held_mib == held
