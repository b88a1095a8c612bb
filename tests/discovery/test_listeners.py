"""What listens on this machine, seen through real sockets and processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from mgpu.discovery.listeners import Listener, family, listeners


@contextmanager
def bound(host: str, family: socket.AddressFamily = socket.AF_INET) -> Iterator[int]:
    with socket.socket(family) as server:
        try:
            server.bind((host, 0))
        except OSError:
            pytest.skip(f"this machine has no {host}")
        server.listen()
        yield server.getsockname()[1]


def at(port: int) -> Listener | None:
    return next((each for each in listeners() if each.port == port), None)


def test_a_port_has_its_process() -> None:
    with bound("127.0.0.1") as port:
        found = at(port)
    assert found is not None
    assert found.hosts == ("127.0.0.1",)
    assert not found.exposed
    assert found.pid == os.getpid()
    assert found.process == psutil.Process().name()
    assert found.ancestors[0] == os.getppid()
    assert not found.is_broker


def test_one_that_listens_everywhere_is_asked_on_loopback() -> None:
    with bound("0.0.0.0") as port:
        found = at(port)
    assert found is not None
    assert (found.hosts, found.exposed) == (("127.0.0.1",), True)


def test_one_that_listens_everywhere_by_ipv6_may_take_ipv4_too() -> None:
    with bound("::", socket.AF_INET6) as port:
        found = at(port)
    assert found is not None
    assert (found.hosts, found.exposed) == (("127.0.0.1", "::1"), True)


def test_a_socket_that_only_connects_or_is_bound_is_no_listener() -> None:
    with socket.socket() as waiting:
        waiting.bind(("127.0.0.1", 0))
        assert at(waiting.getsockname()[1]) is None


def test_the_ports_of_a_broker_are_known_as_such() -> None:
    program = (
        "import socket\ns = socket.socket()\ns.bind(('127.0.0.1', 0))\ns.listen()\n"
        "print(s.getsockname()[1], flush=True)\ninput()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "-m", "mgpu", "serve", "-c", "x.yaml"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        found = at(int(process.stdout.readline()))
    finally:
        process.communicate("\n", timeout=10)
    assert found is not None
    assert found.is_broker
    assert found.ancestors[0] == os.getpid()


def test_the_family_of_a_process_is_itself_and_what_it_has_started() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        found = family(os.getpid())
    finally:
        child.kill()
        child.wait()
    assert {os.getpid(), child.pid} <= found
    assert family(child.pid) == frozenset()
    assert family(None) == frozenset()
