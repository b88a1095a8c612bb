"""mgpu.service itself, hardening included, run by a real systemd with a GPU that is simulated."""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.servers import free_port
from tests.support.systemd import CHECKOUT, Systemd

UNITS = CHECKOUT / "deploy" / "systemd"
READY_WITHIN_S = 15
WATCHDOG_S = 1
LOG = "/run/mgpu-test.log"
COMMAND = Path(sys.executable).parent / "mgpu"
# The checkout and its Python may be in a home folder, which the unit hides.
DROP_IN = f"""
[Service]
ExecStart=
ExecStart={COMMAND} serve -c /etc/mgpu/broker.yaml
ExecReload=
ExecReload={COMMAND} check -c /etc/mgpu/broker.yaml
ExecReload=/bin/kill -HUP $MAINPID
ProtectHome=tmpfs
BindReadOnlyPaths={CHECKOUT} {sys.prefix} {sys.base_prefix}
Environment=PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={CHECKOUT}
WatchdogSec={WATCHDOG_S}
RestartSec=0.1
LimitCORE=0
StandardOutput=append:{LOG}
StandardError=append:{LOG}
"""
CONFIG = """
server: {{listen: "127.0.0.1:{port}"}}
gpu: {{backend: simulated}}
consumers:
  tts: {{url: "http://127.0.0.1:{dead}", vram_managed: true}}
"""


class Broker:
    def __init__(self, systemd: Systemd) -> None:
        self.systemd = systemd
        self.port = free_port()
        self.dead = free_port()
        self.configure(self.port)
        for source in UNITS.glob("mgpu.*"):
            systemd.write_unit(source.name, source.read_text())
        systemd.write_unit("mgpu.service.d/test.conf", DROP_IN)
        # A unit that ends well and that nobody refers to is forgotten, and its result with it.
        systemd.write_unit("memory.target", "[Unit]\nAfter=mgpu.service\n")
        systemd.systemctl("start", "memory.target").check_returncode()

    def configure(self, port: int, *, more: str = "") -> None:
        text = CONFIG.format(port=port, dead=self.dead) + more
        script = 'mkdir -p /etc/mgpu && printf %s "$1" >/etc/mgpu/broker.yaml'
        self.systemd.run("sh", "-c", script, "sh", text, check=True)
        self.systemd.run("chown", "-R", "root:mgpu", "/etc/mgpu", check=True)

    def show(self, name: str) -> str:
        return self.systemd.show("mgpu.service", name)

    def start(self) -> None:
        done = self.systemd.systemctl("start", "mgpu.service", timeout_s=READY_WITHIN_S)
        assert done.returncode == 0, done.stderr + self.log()

    def log(self) -> str:
        return self.systemd.run("cat", LOG).stdout

    def status(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/status", timeout=5) as sent:
            return str(sent.read().decode())

    def healthy(self, port: int) -> bool:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
            return bool(answer.status == 200)


@pytest.fixture
def broker(installed: Systemd) -> Iterator[Broker]:
    made = Broker(installed)
    yield made
    installed.systemctl("stop", "mgpu.socket", "mgpu.service")
    installed.systemctl("reset-failed", "mgpu.service")


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_start_returns_when_the_broker_is_ready_and_stop_ends_it_cleanly(broker: Broker) -> None:
    broker.start()
    assert broker.healthy(broker.port)
    assert "active (running)" in broker.systemd.systemctl("status", "mgpu.service").stdout
    assert broker.show("StatusText") == f"serving on 127.0.0.1:{broker.port}"
    assert broker.systemd.run("stat", "-c", "%U %a", "/var/lib/mgpu/").stdout == "mgpu 700\n"

    stopped = broker.systemd.systemctl("stop", "mgpu.service", timeout_s=10)
    assert stopped.returncode == 0
    assert broker.show("Result") == "success"
    assert (broker.show("ExecMainCode"), broker.show("ExecMainStatus")) == ("1", "0")


def test_a_running_broker_pings_the_watchdog_and_one_that_stands_still_is_restarted(
    broker: Broker,
) -> None:
    broker.start()
    for _ in range(3):
        last = broker.show("WatchdogTimestampMonotonic")
        wait_until(lambda: broker.show("WatchdogTimestampMonotonic") != last, WATCHDOG_S)  # noqa: B023
    assert broker.show("NRestarts") == "0"

    broker.systemd.systemctl("kill", "--kill-whom=main", "--signal=STOP", "mgpu.service")
    wait_until(lambda: broker.show("NRestarts") == "1", 5 * WATCHDOG_S)
    broker.systemd.wait_for("mgpu.service", "ActiveState", "active", READY_WITHIN_S)
    assert broker.healthy(broker.port)


def test_a_config_that_is_wrong_fails_the_start_for_good(broker: Broker) -> None:
    broker.systemd.run("sh", "-c", "echo 'servr: {}' >/etc/mgpu/broker.yaml", check=True)
    assert broker.systemd.systemctl("start", "mgpu.service").returncode != 0
    assert broker.show("ExecMainStatus") == "2"
    assert (broker.show("ActiveState"), broker.show("NRestarts")) == ("failed", "0")
    assert "did you mean server" in broker.log()


def test_a_reload_reads_the_configuration_again_and_a_bad_one_changes_nothing(
    broker: Broker,
) -> None:
    broker.start()
    process = broker.show("MainPID")

    broker.configure(broker.port, more="  stt: {url: 'http://127.0.0.1:1', vram_managed: true}\n")
    broker.systemd.systemctl("reload", "mgpu.service").check_returncode()
    wait_until(lambda: '"stt"' in broker.status(), READY_WITHIN_S)

    broker.configure(broker.port, more="  stt: {urll: 'http://127.0.0.1:1'}\n")
    assert broker.systemd.systemctl("reload", "mgpu.service").returncode != 0
    assert "did you mean url" in broker.log()

    broker.configure(free_port())
    broker.systemd.systemctl("reload", "mgpu.service").check_returncode()
    wait_until(lambda: "not reloaded" in broker.show("StatusText"), READY_WITHIN_S)
    assert "server.listen: cannot change while the broker runs" in broker.show("StatusText")
    assert '"stt"' in broker.status()
    assert (broker.show("ActiveState"), broker.show("MainPID")) == ("active", process)


def test_a_socket_of_systemd_wins_over_the_configured_address(broker: Broker) -> None:
    port = free_port()
    broker.systemd.write_unit(
        "mgpu.socket.d/test.conf", f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{port}\n"
    )
    broker.systemd.systemctl("start", "mgpu.socket").check_returncode()
    assert broker.healthy(port)  # the connection itself starts the service
    assert broker.show("ActiveState") == "active"
    with pytest.raises(urllib.error.URLError):
        broker.healthy(broker.port)
