"""The polkit rule, judged by a real polkit: what the broker's user may do to units."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mgpu.consumers.systemd import SystemdUnit
from mgpu.errors import LoadFailed, UnloadFailed
from tests.support.systemd import CHECKOUT, Systemd

DEPLOY = CHECKOUT / "deploy" / "systemd"
POLKITD = Path("/usr/lib/polkit-1/polkitd")
SLEEPER = "[Service]\nExecStart=/bin/sleep infinity\n"
UNITS = {
    "dbus.socket": "[Socket]\nListenStream=/run/dbus/system_bus_socket\n",
    "dbus.service": (
        "[Unit]\nRequires=dbus.socket\n[Service]\nExecStart=/usr/bin/dbus-daemon --system "
        "--address=systemd: --nofork --nopidfile --systemd-activation\n"
    ),
    "polkit.service": (
        f"[Service]\nType=dbus\nBusName=org.freedesktop.PolicyKit1\nExecStart={POLKITD}\n"
    ),
}


@pytest.fixture(scope="module")
def as_mgpu(systemd: Systemd, installed: Systemd) -> Iterator[tuple[str, ...]]:
    """A systemctl that the user mgpu calls, where the rule is installed as the README says."""
    if not POLKITD.exists() or not Path("/usr/bin/dbus-daemon").exists():
        pytest.skip("polkit and D-Bus are not installed")
    systemd.run(
        "cp", str(DEPLOY / "50-mgpu.rules"), "/etc/polkit-1/rules.d/50-mgpu.rules", check=True
    )
    systemd.run("chmod", "-R", "go+rX", "/etc/polkit-1/rules.d", check=True)
    for name, text in UNITS.items():
        systemd.write_unit(name, text)
    started = systemd.systemctl("start", "dbus.service", "polkit.service")
    assert started.returncode == 0, started.stderr
    user = ("setpriv", "--reuid=mgpu", "--regid=mgpu", "--clear-groups")
    yield (*systemd.enter, *user, "systemctl")
    systemd.systemctl("stop", *UNITS)


async def test_the_broker_may_start_and_stop_the_units_that_the_rule_names(
    systemd: Systemd, as_mgpu: tuple[str, ...]
) -> None:
    systemd.write_unit("tts.service", SLEEPER)
    tts = SystemdUnit("tts", systemctl=as_mgpu)
    await tts.start(10)
    assert systemd.show("tts.service", "ActiveState") == "active"
    await tts.stop(10)
    assert systemd.show("tts.service", "ActiveState") == "inactive"


async def test_the_broker_may_not_touch_other_units(
    systemd: Systemd, as_mgpu: tuple[str, ...]
) -> None:
    systemd.write_unit("database.service", SLEEPER)
    database = SystemdUnit("database", systemctl=as_mgpu)
    with pytest.raises(LoadFailed, match="a polkit rule has to allow it"):
        await database.start(10)
    systemd.systemctl("start", "database").check_returncode()
    with pytest.raises(UnloadFailed, match="a polkit rule has to allow it"):
        await database.stop(10)
    assert systemd.show("database.service", "ActiveState") == "active"
    assert (await database.state()).is_active


def test_the_broker_may_do_nothing_else_to_the_units_that_it_may_stop(
    systemd: Systemd, as_mgpu: tuple[str, ...]
) -> None:
    systemd.write_unit("comfyui.service", SLEEPER)
    systemd.systemctl("start", "comfyui").check_returncode()
    for arguments in (("kill", "comfyui.service"), ("mask", "comfyui.service"), ("daemon-reload",)):
        done = systemd.run(*as_mgpu[len(systemd.enter) :], "--no-ask-password", *arguments)
        assert done.returncode != 0, arguments
        assert "denied" in done.stderr or "authentication required" in done.stderr, done.stderr


def test_the_confined_service_can_reach_systemd(systemd: Systemd, as_mgpu: tuple[str, ...]) -> None:
    systemd.write_unit("tts.service", SLEEPER)
    systemd.write_unit("confined.service", (DEPLOY / "mgpu.service").read_text())
    systemd.write_unit(
        "confined.service.d/test.conf",
        "[Service]\nType=oneshot\nRestart=no\nWatchdogSec=0\nExecStart=\n"
        "ExecStart=systemctl --no-ask-password start tts.service\n",
    )
    assert systemd.show("tts.service", "ActiveState") == "inactive"
    done = systemd.systemctl("start", "confined.service")
    assert done.returncode == 0, done.stderr
    assert systemd.show("tts.service", "ActiveState") == "active"
