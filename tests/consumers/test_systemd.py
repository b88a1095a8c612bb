"""Units of a real systemd, started and stopped by the code that does it in production."""

from __future__ import annotations

import asyncio
import os
import select
import time
from pathlib import Path

import pytest

from mgpu.consumers import systemd as systemd_module
from mgpu.consumers.systemd import SystemdUnit, UnitState, unit_name
from mgpu.errors import ConfigError, ConsumerFailed, LoadFailed, UnloadFailed
from tests.support.systemd import Systemd

SLEEPER = "[Service]\nExecStart=/bin/sleep infinity\n"


def unit(systemd: Systemd, name: str, text: str = SLEEPER) -> SystemdUnit:
    systemd.write_unit(f"{name}.service", text)
    return SystemdUnit(name, systemctl=systemd.systemctl_command)


def fake_systemctl(folder: Path, script: str) -> str:
    path = folder / "systemctl"
    path.write_text(f"#!/bin/sh\n{script}")
    path.chmod(0o755)
    return str(path)


def hanging(folder: Path, systemd: Systemd) -> str:
    """A systemctl that passes everything on and then does not come back from start and stop."""
    real = " ".join(systemd.systemctl_command)
    return fake_systemctl(
        folder,
        f"""{real} "$@"
        code=$?
        case " $* " in *" start "*|*" stop "*) echo $$ >{folder}/pid; sleep 1000;; esac
        exit $code
        """,
    )


async def test_a_unit_is_started_and_stopped(systemd: Systemd) -> None:
    sleeper = unit(systemd, "plain")
    assert (await sleeper.state()).is_stopped

    await sleeper.start(10)
    assert systemd.show("plain.service", "ActiveState") == "active"
    run = systemd.show("plain.service", "InvocationID")
    assert run
    assert await sleeper.state() == UnitState(
        "loaded", "active", "running", "success", "/system.slice/plain.service", run
    )

    await sleeper.stop(10)
    assert systemd.show("plain.service", "ActiveState") == "inactive"
    assert (await sleeper.state()).is_stopped


async def test_starting_a_running_unit_and_stopping_a_stopped_one_change_nothing(
    systemd: Systemd,
) -> None:
    sleeper = unit(systemd, "twice")
    await sleeper.start(10)
    pid = systemd.show("twice.service", "MainPID")
    await sleeper.start(10)
    assert systemd.show("twice.service", "MainPID") == pid
    await sleeper.stop(10)
    await sleeper.stop(10)


async def test_a_unit_that_does_not_exist_is_named(systemd: Systemd) -> None:
    nobody = SystemdUnit("nobody", systemctl=systemd.systemctl_command)
    assert str(await nobody.state()) == "inactive, its file is not-found"
    with pytest.raises(LoadFailed) as caught:
        await nobody.start(10)
    assert caught.value.detail == (
        "nobody.service: systemctl start: Failed to start nobody.service: "
        "Unit nobody.service not found"
    )
    with pytest.raises(UnloadFailed, match=r"nobody\.service: systemctl stop: .* not loaded"):
        await nobody.stop(10)


async def test_a_unit_whose_program_fails_is_a_failed_load(systemd: Systemd) -> None:
    broken = unit(systemd, "broken", "[Service]\nType=oneshot\nExecStart=/bin/false\n")
    with pytest.raises(LoadFailed, match=r"broken\.service: systemctl start: Job for broken"):
        await broken.start(10)
    state = await broken.state()
    assert state.is_stopped
    assert str(state) == "failed (failed, result exit-code)"


async def test_a_hanging_start_worked_if_the_unit_is_active(
    systemd: Systemd, tmp_path: Path
) -> None:
    systemd.write_unit("hung-start.service", SLEEPER)
    await SystemdUnit("hung-start", systemctl=(hanging(tmp_path, systemd),)).start(0.5)
    assert systemd.show("hung-start.service", "ActiveState") == "active"


async def test_a_hanging_stop_worked_if_the_unit_is_stopped(
    systemd: Systemd, tmp_path: Path
) -> None:
    await unit(systemd, "hung-stop").start(10)
    await SystemdUnit("hung-stop", systemctl=(hanging(tmp_path, systemd),)).stop(0.5)
    assert systemd.show("hung-stop.service", "ActiveState") == "inactive"


async def test_a_start_that_takes_too_long_fails_with_the_units_state(systemd: Systemd) -> None:
    slow = unit(systemd, "slow", "[Service]\nType=notify\nExecStart=/bin/sleep infinity\n")
    began = time.monotonic()
    with pytest.raises(LoadFailed) as caught:
        await slow.start(0.3)
    assert time.monotonic() - began < 2.0
    assert caught.value.detail == (
        "slow.service: not started within 0.3 s, it is activating (start)"
    )


async def test_a_unit_whose_stop_hangs_fails_with_the_units_state(systemd: Systemd) -> None:
    stubborn = unit(systemd, "stubborn", f"{SLEEPER}ExecStop=/bin/sleep infinity\n")
    await stubborn.start(10)
    with pytest.raises(UnloadFailed) as caught:
        await stubborn.stop(0.3)
    assert caught.value.detail == (
        "stubborn.service: not stopped within 0.3 s, it is deactivating (stop)"
    )


async def test_when_nothing_answers_the_deadline_still_holds_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd_module, "_STATE_TIMEOUT_S", 0.2)
    script = f"sleep 1000 & echo $! >>{tmp_path}/pids; wait"
    dead = SystemdUnit("any", systemctl=(fake_systemctl(tmp_path, script),))
    began = time.monotonic()
    with pytest.raises(UnloadFailed) as caught:
        await dead.stop(0.2)
    assert time.monotonic() - began < 1.5
    assert caught.value.detail == (
        "any.service: systemctl stop hung for 0.2 s, "
        "then: any.service: systemctl show hung for 0.2 s"
    )
    for pid in (tmp_path / "pids").read_text().split():
        assert ends(pid)


async def test_a_cancelled_start_leaves_no_process(tmp_path: Path) -> None:
    fifo = tmp_path / "begun"
    os.mkfifo(fifo)
    script = f"sleep 1000 & echo $! >{fifo}; wait"
    dead = SystemdUnit("any", systemctl=(fake_systemctl(tmp_path, script),))
    starting = asyncio.create_task(dead.start(60))
    async with asyncio.timeout(10):
        pid = await asyncio.to_thread(fifo.read_text)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    assert ends(pid)


def ends(pid: str) -> bool:
    """Whether a process that was killed has ended; the kernel takes a moment."""
    try:
        process = os.pidfd_open(int(pid))
    except ProcessLookupError:
        return True
    with os.fdopen(process) as waited_for:
        return bool(select.select([waited_for], [], [], 5.0)[0])


async def test_a_missing_systemctl_is_said(tmp_path: Path) -> None:
    absent = SystemdUnit("any", systemctl=(str(tmp_path / "systemctl"),))
    with pytest.raises(LoadFailed, match=r"any\.service: cannot run .*No such file or directory"):
        await absent.start(1)
    with pytest.raises(UnloadFailed, match="cannot run"):
        await absent.stop(1)
    with pytest.raises(ConsumerFailed, match="cannot run"):
        await absent.state()


@pytest.mark.parametrize(
    "said",
    [
        "Failed to stop any.service: Access denied",
        "Failed to stop any.service: Interactive authentication required.",
    ],
)
async def test_what_polkit_denies_is_explained(tmp_path: Path, said: str) -> None:
    script = f"echo '{said}' >&2; exit 1"
    denied = SystemdUnit("any", systemctl=(fake_systemctl(tmp_path, script),))
    with pytest.raises(UnloadFailed) as caught:
        await denied.stop(5)
    assert caught.value.detail == (
        f"any.service: systemctl stop: {said.rstrip('.')}; "
        "a polkit rule has to allow it to the broker's user"
    )


@pytest.mark.parametrize(
    ("scope", "expected"),
    [("system", "--no-ask-password stop any.service"), ("user", "--user --no-ask-password stop")],
)
async def test_systemctl_is_asked_in_plain_english_and_never_for_a_password(
    tmp_path: Path, scope: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    script = 'echo "$LC_ALL $*" >&2; exit 1'
    asked = SystemdUnit(
        "any",
        "user" if scope == "user" else "system",
        systemctl=(fake_systemctl(tmp_path, script),),
    )
    with pytest.raises(UnloadFailed, match=f"systemctl stop: C {expected}"):
        await asked.stop(5)


@pytest.mark.parametrize(
    ("given", "full"),
    [
        ("tts", "tts.service"),
        ("tts.service", "tts.service"),
        ("gpu.target", "gpu.target"),
        ("llm@qwen2.5-7b", "llm@qwen2.5-7b.service"),
        (r"dev-disk\x2d1", r"dev-disk\x2d1.service"),
    ],
)
def test_a_unit_name_is_completed_as_systemctl_does(given: str, full: str) -> None:
    assert unit_name(given) == full


@pytest.mark.parametrize(
    "given",
    ["", "-x", "--force", "a b", "a/b", "../a", "tts*", "a;b", "a\nb", "llm@", "ä", "x" * 256],
)
def test_what_is_no_units_name_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="is not the name of a systemd unit"):
        SystemdUnit(given)
