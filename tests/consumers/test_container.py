"""Containers of a real engine."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from mgpu.config.model import ConsumerConfig
from mgpu.consumers import container as container_module
from mgpu.consumers import make_controller
from mgpu.consumers.container import Container, ContainerState
from mgpu.errors import ConsumerFailed, LoadFailed
from mgpu.ports import Placement
from tests.support.engine import Engine
from tests.support.servers import free_port

NOWHERE = Placement()
SLEEP = (sys.executable, "-c", "import time; time.sleep(1000)")


@asynccontextmanager
async def real(engine: Engine, name: str, *, grace_s: float = 1.0) -> AsyncIterator[Container]:
    one = Container(name, engine.socket, grace_s=grace_s)
    try:
        yield one
    finally:
        await one.close()


async def test_a_container_is_started_and_stopped_as_often_as_wanted(engine: Engine) -> None:
    await engine.create("often", *SLEEP)
    async with real(engine, "often") as one:
        assert (await one.state()).is_stopped
        for _ in range(2):
            await one.start(30)
            await one.start(30)
            assert (await one.state()).is_active
            await one.stop(30)
            await one.stop(30)
            assert (await one.state()).is_stopped


async def test_its_id_and_first_process_tell_whose_processes_are_its(engine: Engine) -> None:
    await engine.create("whose", *SLEEP)
    async with real(engine, "whose") as one:
        await one.start(30)
        state = await one.state()
        groups = await asyncio.to_thread(Path(f"/proc/{state.pid}/cgroup").read_text)
        assert f"{engine.group}{state.id}" in groups


async def test_one_that_is_not_there_is_named_with_the_nearest(engine: Engine) -> None:
    await engine.create("kokoro-tts", *SLEEP)
    async with real(engine, "kokoro_tts") as one:
        with pytest.raises(LoadFailed) as caught:
            await one.start(30)
        assert caught.value.detail == (
            "no container is called 'kokoro_tts'; did you mean kokoro-tts?"
        )
        with pytest.raises(ConsumerFailed, match="no container is called 'kokoro_tts'"):
            await one.state()
        await one.stop(30)  # nothing of it is left to stop


@pytest.mark.parametrize("wanted", ["start", "stop"])
async def test_one_that_somebody_paused_is_resumed_first(engine: Engine, wanted: str) -> None:
    name = f"paused-{wanted}"
    await engine.create(name, *SLEEP)
    async with real(engine, name) as one:
        await one.start(30)
        await engine.do(name, "pause")
        state = await one.state()
        assert (str(state), state.is_active, state.is_stopped) == ("paused", False, False)
        if wanted == "start":
            await one.start(30)
            assert (await one.state()).is_active
        else:
            await one.stop(30)
            assert (await one.state()).is_stopped


async def test_what_the_engine_complains_about_is_passed_on(engine: Engine) -> None:
    await engine.create("broken", "/nowhere/program")
    async with real(engine, "broken") as one:
        await one.start(30)
        await becomes(one, lambda state: state.is_stopped)
        assert str(await one.state()).endswith("(exit code 127)")


async def becomes(one: Container, wanted: Callable[[ContainerState], bool]) -> None:
    """Poll: nobody but the engine knows."""
    async with asyncio.timeout(20):
        while not wanted(await one.state()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("policy", ["always", "unless-stopped", "on-failure"])
async def test_one_that_died_is_restarted_by_its_engine_and_stays_stopped_by_the_broker(
    engine: Engine, policy: str
) -> None:
    await engine.create(policy, *SLEEP, RestartPolicy={"Name": policy})
    async with real(engine, policy) as one:
        await one.start(30)
        first = (await one.state()).pid
        os.kill(first, signal.SIGKILL)
        await becomes(one, lambda state: state.is_active and state.pid != first)
        os.kill((await one.state()).pid, signal.SIGKILL)
        await one.stop(30)  # the engine may be about to restart it, and is not to
        assert (await one.state()).is_stopped
        began = time.monotonic()
        await one.stop(30)
        assert time.monotonic() - began < container_module._RESTART_S


async def test_a_kill_through_the_engine_counts_as_a_stop(engine: Engine) -> None:
    await engine.create("killed", *SLEEP, RestartPolicy={"Name": "always"})
    async with real(engine, "killed") as one:
        await one.start(30)
        await engine.do("killed", "kill")
        await becomes(one, lambda state: state.is_stopped)
        assert str(await one.state()) == "exited (exit code 137)"
        await one.start(30)
        assert (await one.state()).is_active


async def test_while_its_engine_is_away_nobody_can_say_and_afterwards_it_is_as_before(
    engine: Engine,
) -> None:
    await engine.create("away", *SLEEP)
    async with real(engine, "away") as one:
        assert (await one.state()).is_stopped
        await asyncio.to_thread(engine.stop)
        try:
            with pytest.raises(ConsumerFailed, match=f"(there is no|at) {engine.socket}: "):
                await one.state()
            with pytest.raises(LoadFailed, match=f"(there is no|at) {engine.socket}: "):
                await one.start(30)
        finally:
            await asyncio.to_thread(engine.start)
        await one.start(30)
        assert (await one.state()).is_active
        await one.stop(30)


@pytest.mark.parametrize(("policy", "comes_back"), [("always", True), ("unless-stopped", False)])
async def test_docker_starts_what_is_always_to_run_when_it_starts_itself(
    docker: Engine, policy: str, comes_back: bool
) -> None:
    """As its reference says; Podman has no daemon that could."""
    name = f"{policy}-again"
    await docker.create(name, *SLEEP, RestartPolicy={"Name": policy})
    async with real(docker, name) as one:
        await one.start(30)
        await one.stop(30)
        await asyncio.to_thread(docker.stop)
        await asyncio.to_thread(docker.start)
        assert (await one.state()).is_active is comes_back
        await one.stop(30)
        assert (await one.state()).is_stopped


async def test_what_dockers_health_check_says_is_waited_for(
    docker: Engine, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Podman is left out: systemd runs its health checks, and there is none for it."""
    flag, port = tmp_path / "healthy", free_port()
    check = ["CMD", "/bin/busybox", "test", "-e", f"/host{flag}"]
    every_0_1_s = {"Interval": 100_000_000, "Timeout": 10_000_000_000, "Retries": 1}
    await docker.create(
        "checked",
        *(sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)),
        Healthcheck={"Test": check, **every_0_1_s},
    )
    config = ConsumerConfig(
        url=f"http://127.0.0.1:{port}",
        container="checked",
        container_socket=str(docker.socket),
        stop_grace_s=1,
    )
    one = make_controller("checked", config, session)
    async with real(docker, "checked") as seen:
        loading = asyncio.create_task(one.load(NOWHERE))
        await becomes(seen, lambda state: str(state) == "running (unhealthy)")
        async with asyncio.timeout(20):
            while not (await one.probe()).reachable:  # noqa: ASYNC110  it does not tell
                await asyncio.sleep(0.05)
        report = await one.probe()
        assert (report.healthy, report.alive) == (False, True)
        assert report.detail == "container checked is running (unhealthy)"
        assert not loading.done()
        flag.touch()
        async with asyncio.timeout(20):
            await loading
        assert (await one.probe()).healthy
        assert str(await seen.state()) == "running (healthy)"
        await one.unload()
        await one.close()
