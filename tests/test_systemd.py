"""What a service says to systemd and gets from it, over real sockets and in real processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mgpu.errors import ConfigError
from mgpu.systemd import (
    READY,
    STOPPING,
    WATCHDOG,
    listen_sockets,
    notify,
    status,
    watchdog_interval_s,
)


@contextmanager
def service_manager(address: str | bytes) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(5)
        yield manager


def test_notifications_reach_the_service_manager(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with service_manager(path) as manager:
        assert notify(READY, status("serving 3\nconsumers"), environ={"NOTIFY_SOCKET": path})
        assert manager.recv(100) == b"READY=1\nSTATUS=serving 3 consumers"
        assert notify(WATCHDOG, environ={"NOTIFY_SOCKET": path})
        assert manager.recv(100) == b"WATCHDOG=1"


def test_a_service_manager_may_listen_on_an_abstract_socket() -> None:
    name = f"mgpu-test-{uuid.uuid4()}"
    with service_manager(f"\0{name}") as manager:
        assert notify(STOPPING, environ={"NOTIFY_SOCKET": f"@{name}"})
        assert manager.recv(100) == b"STOPPING=1"


def test_outside_systemd_nothing_is_sent() -> None:
    assert not notify(READY, environ={})
    assert not notify(READY, environ={"NOTIFY_SOCKET": ""})


def test_a_service_manager_that_is_gone_is_no_error(tmp_path: Path) -> None:
    assert not notify(READY, environ={"NOTIFY_SOCKET": str(tmp_path / "gone")})


def test_a_service_manager_that_does_not_read_does_not_hold_the_service_up(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "full")
    with service_manager(path):
        sent = [notify(WATCHDOG, environ={"NOTIFY_SOCKET": path})]
        while sent[-1]:
            assert len(sent) < 100_000
            sent.append(notify(WATCHDOG, environ={"NOTIFY_SOCKET": path}))


@pytest.mark.parametrize("address", ["vsock:2:1234", "notify", "@", "/"])
def test_an_address_that_is_none_is_named(address: str) -> None:
    with pytest.raises(ConfigError, match="NOTIFY_SOCKET is "):
        notify(READY, environ={"NOTIFY_SOCKET": address})


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getppid())}, None),
    ],
)
def test_the_watchdog_interval_is_for_the_process_it_names(
    environ: dict[str, str], interval_s: float | None
) -> None:
    assert watchdog_interval_s(environ) == interval_s


@pytest.mark.parametrize(
    "environ",
    [
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "-1"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "me"},
    ],
)
def test_a_watchdog_setting_that_is_no_number_is_named(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="WATCHDOG_"):
        watchdog_interval_s(environ)


def in_a_process_with(fd: int, listen_pid: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python with ``fd`` as its file descriptor 3, as systemd would."""
    script = f'exec 3<&0; export LISTEN_FDS=1 LISTEN_PID={listen_pid}; exec "$@"'
    return subprocess.run(
        ("sh", "-c", script, "sh", sys.executable, "-c", f"from mgpu.systemd import *\n{code}"),
        stdin=fd,
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )


SHOW = """
print([(s.family.name, s.getsockname(), s.get_inheritable()) for s in listen_sockets()])
"""


def test_a_socket_that_systemd_opened_is_taken_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = in_a_process_with(server.fileno(), "$$", SHOW)
        assert done.stdout.strip() == str([("AF_INET", server.getsockname(), False)]), done.stderr


def test_a_socket_of_the_parent_process_is_left_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert in_a_process_with(server.fileno(), "1", SHOW).stdout.strip() == "[]"


def test_a_socket_that_does_not_listen_is_named() -> None:
    with socket.socket() as unbound:
        done = in_a_process_with(unbound.fileno(), "$$", SHOW)
    assert "ConfigError: LISTEN_FDS: file descriptor 3 is not a listening" in done.stderr


def test_a_file_in_a_sockets_place_is_named(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        done = in_a_process_with(file.fileno(), "$$", SHOW)
    assert "ConfigError: LISTEN_FDS: file descriptor 3: " in done.stderr


def test_without_systemd_there_are_no_sockets() -> None:
    assert listen_sockets({}) == ()
    assert listen_sockets({"LISTEN_FDS": "1"}) == ()
