"""Programs that the broker starts and ends itself: real processes, and nothing of them left."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from mgpu.config.model import ConsumerConfig
from mgpu.consumers import reaper
from mgpu.consumers.program import Program
from mgpu.errors import LoadFailed
from tests.support.servers import free_port
from tests.support.systemd import CHECKOUT

PROGRAM = (sys.executable, str(CHECKOUT / "tests" / "support" / "program.py"))


@asynccontextmanager
async def program(
    *options: str, died: Callable[[], None] = lambda: None, **config: Any
) -> AsyncIterator[Program]:
    given: dict[str, Any] = {"command": (*PROGRAM, *options), "stop_grace_s": 5.0}
    made = ConsumerConfig.model_validate(
        {"url": f"http://127.0.0.1:{free_port()}"} | given | config
    )
    one = Program("tts", made, died)
    try:
        yield one
    finally:
        await one.close()


def ended(pid: int, within_s: float = 5.0) -> bool:
    """Whether a process is no more, within a time."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    with os.fdopen(process) as waited_for:
        return bool(select.select([waited_for], [], [], within_s)[0])


async def pids(file: Path, count: int) -> list[int]:
    """The process numbers that a program and its children have written down."""
    deadline = time.monotonic() + 10
    while True:
        lines = written(file)
        if len(lines) >= count:
            return [int(line) for line in lines]
        assert time.monotonic() < deadline, f"only {lines} after 10 s"
        await asyncio.sleep(0.01)


def written(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


async def stopped(one: Program, within_s: float = 10.0) -> None:
    assert one._run is not None
    async with asyncio.timeout(within_s):
        await one._run.watching


async def test_a_program_is_started_and_ended_with_all_that_it_has_started(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    async with program("--pids", str(file), "--workers", "2", "--escapers", "2") as one:
        assert (await one.state()).is_stopped
        await one.start(5)
        assert (await one.state()).is_active
        everybody = await pids(file, 5)
        await one.stop(20)
        assert (await one.state()).is_stopped
        assert all(ended(pid, 0) for pid in everybody)


async def test_who_heeds_no_sigterm_is_killed_when_the_grace_is_over(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    options = ("--pids", str(file), "--workers", "1", "--escapers", "1", "--stubborn")
    async with program(*options, stop_grace_s=0.5) as one:
        await one.start(5)
        everybody = await pids(file, 3)
        began = time.monotonic()
        await one.stop(20)
        assert 0.5 <= time.monotonic() - began < 5
        assert all(ended(pid, 0) for pid in everybody)


async def test_a_reaper_that_hangs_is_killed_at_the_deadline(tmp_path: Path) -> None:
    async with program("--pids", str(tmp_path / "pids"), "--stubborn", stop_grace_s=60.0) as one:
        await one.start(5)
        (pid,) = await pids(tmp_path / "pids", 1)
        await one.stop(0.3)
        assert ended(pid)
        assert (await one.state()).is_stopped


async def test_starting_twice_starts_once_and_stopping_twice_is_nothing(tmp_path: Path) -> None:
    async with program("--pids", str(tmp_path / "pids")) as one:
        await one.start(5)
        await one.start(5)
        assert len(await pids(tmp_path / "pids", 1)) == 1
        await one.stop(10)
        await one.stop(10)


async def test_each_of_its_runs_is_told_from_the_others(tmp_path: Path) -> None:
    runs = []
    async with program("--pids", str(tmp_path / "pids")) as one:
        for _ in range(2):
            await one.start(5)
            run = (await one.state()).run
            assert (await one.state()).run == run
            runs.append(run)
            await one.stop(10)
    assert len({*runs}) == 2
    assert all(runs)


async def test_a_program_that_dies_is_noticed_at_once_and_its_last_words_are_kept() -> None:
    died = asyncio.Event()
    with capture_logs() as logs:
        options = ("--say", "loading weights", "--say", "CUDA out of memory", "--exit", "3")
        async with program(*options, died=died.set) as one:
            await one.start(5)
            async with asyncio.timeout(10):
                await died.wait()
            state = await one.state()
    assert state.is_stopped
    assert str(state) == (
        "ended with exit status 3, it said last: loading weights | CUDA out of memory"
    )
    lines = [log["line"] for log in logs if log["event"] == "output"]
    assert lines == ["loading weights", "CUDA out of memory"]
    (end,) = [log for log in logs if log["event"] == "program ended"]
    assert (end["consumer"], end["how"]) == ("tts", "ended with exit status 3")


async def test_one_that_was_asked_to_end_has_not_died() -> None:
    died: list[bool] = []
    async with program(died=lambda: died.append(True)) as one:
        await one.start(5)
        await one.stop(10)
        assert str(await one.state()) == "ended by SIGTERM"
    assert not died


async def test_what_a_dead_program_leaves_behind_is_ended_too(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    options = ("--pids", str(file), "--workers", "1", "--escapers", "1", "--exit", "0")
    async with program(*options) as one:
        await one.start(5)
        everybody = await pids(file, 3)
        await stopped(one)
        assert all(ended(pid, 0) for pid in everybody)


async def test_a_program_that_was_killed_says_so(tmp_path: Path) -> None:
    async with program("--pids", str(tmp_path / "pids")) as one:
        await one.start(5)
        (pid,) = await pids(tmp_path / "pids", 1)
        os.kill(pid, signal.SIGKILL)
        await stopped(one)
        assert str(await one.state()) == "ended by SIGKILL"
        await one.start(5)
        assert (await one.state()).is_active


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("/nowhere/llama-server",), "cannot run /nowhere/llama-server: No such file or directory"),
        (("/etc/passwd",), "cannot run /etc/passwd: Permission denied"),
    ],
)
async def test_a_program_that_cannot_be_run_says_why(command: tuple[str], said: str) -> None:
    async with program(command=command) as one:
        await one.start(5)
        await stopped(one)
        assert said in str(await one.state())


async def test_a_folder_that_is_not_there_fails_the_start(tmp_path: Path) -> None:
    async with program(cwd=tmp_path / "models") as one:
        with pytest.raises(LoadFailed, match=r"cannot start in .*/models: No such file"):
            await one.start(5)


async def test_a_stranger_at_its_address_is_named_and_left_alone() -> None:
    async with program() as one:
        url = one._config.url
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        with socket.create_server(address), pytest.raises(LoadFailed) as caught:
            await one.start(5)
    assert caught.value.detail == (
        f"{Path(sys.executable).name}: something else listens at {url} already: end that, or give "
        "this consumer another port"
    )


async def test_it_has_the_brokers_environment_and_its_own_but_not_the_brokers_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MGPU_API_KEY", "0123456789")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    monkeypatch.setenv("LANG", "C.UTF-8")
    names = ("MGPU_API_KEY", "NOTIFY_SOCKET", "LANG", "CUDA_VISIBLE_DEVICES")
    options = [word for name in names for word in ("--environment", name)]
    with capture_logs() as logs:
        async with program(*options, "--exit", "0", environment={"CUDA_VISIBLE_DEVICES": 1}) as one:
            await one.start(5)
            await stopped(one)
    assert [log["line"] for log in logs if log["event"] == "output"] == [
        "MGPU_API_KEY=None",
        "NOTIFY_SOCKET=None",
        "LANG=C.UTF-8",
        "CUDA_VISIBLE_DEVICES=1",
    ]


async def test_its_secrets_are_not_among_its_last_words() -> None:
    options = ("--environment", "HF_TOKEN", "--exit", "1")
    async with program(*options, environment={"HF_TOKEN": "hf_0123456789"}) as one:
        await one.start(5)
        await stopped(one)
        assert str(await one.state()).endswith("it said last: HF_TOKEN=[redacted]")


async def test_a_cancelled_start_leaves_nothing_that_close_does_not_end(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    async with program("--pids", str(file)) as one:
        starting = asyncio.create_task(one.start(30))
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    assert (await one.state()).is_stopped


BROKER = """
import asyncio, sys
from mgpu.config.model import ConsumerConfig
from mgpu.consumers.program import Program

async def main():
    config = ConsumerConfig(url="http://127.0.0.1:1", command=sys.argv[1:], stop_grace_s=1)
    await Program("tts", config, lambda: None).start(5)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


async def test_nothing_outlives_a_broker_that_was_killed(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    options = ("--pids", str(file), "--workers", "1", "--escapers", "1", "--stubborn")
    broker = broker_with(*options)
    everybody = await pids(file, 3)
    broker.kill()
    broker.wait(timeout=10)
    assert all(ended(pid, 10) for pid in everybody)


def broker_with(*options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", BROKER, *PROGRAM, *options],
        stderr=subprocess.DEVNULL,
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )


async def test_nothing_of_the_group_outlives_a_reaper_that_was_killed(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    async with program("--pids", str(file), "--workers", "1", "--stubborn") as one:
        await one.start(5)
        everybody = await pids(file, 2)
        assert one._run is not None
        one._run.reaper.kill()
        await stopped(one)
        assert all(ended(pid) for pid in everybody)


def test_the_reaper_needs_nothing_of_this_package() -> None:
    text = Path(reaper.__file__).read_text()
    assert "mgpu" not in text
