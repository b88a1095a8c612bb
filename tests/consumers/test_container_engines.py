"""Engines that are not there, and one that answers as the reference says, on demand badly."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from mgpu.config.model import ConsumerConfig
from mgpu.consumers import container as container_module
from mgpu.consumers import make_controller
from mgpu.consumers.container import Container, socket_path
from mgpu.errors import ConfigError, ConsumerFailed, LoadFailed, UnloadFailed
from mgpu.ports import Placement
from tests.support.servers import free_port

NOWHERE = Placement()


# An engine that is not there


async def test_a_socket_that_is_missing_is_named(tmp_path: Path) -> None:
    async with fake_container(tmp_path / "none.sock") as one:
        with pytest.raises(LoadFailed) as caught:
            await one.start(5)
        assert caught.value.detail == (
            f"container tts: there is no {tmp_path}/none.sock: start Docker or Podman's socket, "
            "or name another one by container_socket"
        )
        with pytest.raises(UnloadFailed, match=r"there is no .*/none\.sock"):
            await one.stop(5)


async def test_a_socket_that_nobody_listens_at_is_named(tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"
    server = await asyncio.start_unix_server(lambda *_: None, path)
    server.close()
    await server.wait_closed()
    async with fake_container(path) as one:
        with pytest.raises(ConsumerFailed, match=r"nobody listens at .*: the engine does not run"):
            await one.state()


@pytest.mark.parametrize(
    ("given", "environ", "path"),
    [
        ("unix:///run/my.sock", {"DOCKER_HOST": "unix:///other"}, "/run/my.sock"),
        ("/run/my.sock", {}, "/run/my.sock"),
        (None, {"DOCKER_HOST": "unix:///run/user/1/docker.sock"}, "/run/user/1/docker.sock"),
        (None, {}, "/var/run/docker.sock"),
    ],
)
def test_the_socket_is_as_given_or_as_docker_finds_it(
    given: str | None, environ: dict[str, str], path: str
) -> None:
    assert socket_path(given, environ) == Path(path)


async def test_without_a_word_a_private_engine_is_found(tmp_path: Path) -> None:
    (tmp_path / "podman").mkdir()
    path = tmp_path / "podman" / "podman.sock"
    async with await asyncio.start_unix_server(lambda *_: None, path):
        assert socket_path(None, {"XDG_RUNTIME_DIR": str(tmp_path)}) == path


@pytest.mark.parametrize("host", ["tcp://10.0.0.1:2375", "ssh://gpu-box", "docker.sock"])
def test_an_engine_on_another_machine_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match=r"container_socket: .* is not a Unix socket"):
        socket_path(host, {})
    with pytest.raises(ConfigError, match="DOCKER_HOST: "):
        socket_path(None, {"DOCKER_HOST": host})


# An engine that answers as the reference says, on demand badly


def ago(seconds: float) -> str:
    """A time as the engines write it, to the nanosecond."""
    when = datetime.now(UTC) - timedelta(seconds=seconds)
    return when.strftime("%Y-%m-%dT%H:%M:%S.%f") + "789Z"


@dataclass
class FakeEngine:
    """One container; ``state`` is what inspecting it shows, ``answers`` what a verb answers."""

    state: dict[str, Any] = field(default_factory=lambda: {"Status": "exited", "ExitCode": 0})
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    hanging: set[str] = field(default_factory=set)
    policy: str = "no"
    version: str = "1.41"
    least_version: str = "1.24"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        verb = request.path.rpartition("/")[2]
        if verb != "version" and f"/v{self.least_version}/" > request.path[:7]:
            return _json({"message": "client version is too old"}, 400)
        self.asked.append(f"{request.method} {request.path_qs}")
        if verb in self.hanging:
            await asyncio.Event().wait()
        if verb in self.answers:
            status, body = self.answers[verb]
            if isinstance(body, str):
                return web.Response(text=body, status=status, content_type="text/plain")
            return _json(body, status)
        match request.method, verb:
            case "GET", "version":
                return web.json_response({"ApiVersion": self.version})
            case "GET", "json":
                host = {"RestartPolicy": {"Name": self.policy}}
                shown = {"Id": "0123abcd", "State": self.state, "HostConfig": host}
                return web.json_response(shown)
            case "POST", "start":
                self.state |= {"Status": "running", "Pid": 7}
            case "POST", "stop":
                if self.state["Status"] != "exited":
                    self.state |= {"Status": "exited", "Pid": 0, "FinishedAt": ago(0)}
        return web.Response(status=204)


def _json(document: Any, status: int) -> web.Response:
    """As the engines send it: without a charset, which aiodocker is particular about."""
    headers = {"Content-Type": "application/json"}
    return web.Response(body=json.dumps(document), status=status, headers=headers)


@asynccontextmanager
async def fake_container(path: Path, *, grace_s: float = 10.0) -> AsyncIterator[Container]:
    one = Container("tts", path, grace_s=grace_s)
    try:
        yield one
    finally:
        await one.close()


@asynccontextmanager
async def serving(engine: FakeEngine, path: Path) -> AsyncIterator[None]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", engine.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()
    try:
        yield
    finally:
        await runner.cleanup()


@asynccontextmanager
async def faked(tmp_path: Path, **how: Any) -> AsyncIterator[tuple[FakeEngine, Container]]:
    engine = FakeEngine(**how)
    path = tmp_path / "engine.sock"
    async with serving(engine, path), fake_container(path, grace_s=2.5) as one:
        yield engine, one


async def test_the_engines_own_version_is_spoken_and_the_grace_is_in_whole_seconds(
    tmp_path: Path,
) -> None:
    async with faked(tmp_path, version="1.47") as (engine, one):
        await one.start(5)
        await one.stop(5)
        assert "POST /v1.47/containers/tts/start" in engine.asked
        assert "POST /v1.47/containers/tts/stop?t=3" in engine.asked


async def test_an_engine_that_was_replaced_is_spoken_to_in_its_version(tmp_path: Path) -> None:
    async with faked(tmp_path) as (engine, one):
        assert (await one.state()).is_stopped
        engine.version = engine.least_version = "1.44"
        with pytest.raises(ConsumerFailed, match="client version is too old"):
            await one.state()
        assert (await one.state()).is_stopped


@pytest.mark.parametrize("code", [204, 304])
async def test_started_already_is_started_and_stopped_already_is_stopped(
    tmp_path: Path, code: int
) -> None:
    answers = {"start": (code, None), "stop": (code, None)}
    async with faked(tmp_path, answers=answers) as (_, one):
        await one.start(5)
        await one.stop(5)


async def test_one_that_the_engine_restarts_after_the_stop_is_stopped_again(
    tmp_path: Path,
) -> None:
    """As Podman does that was about to, when it says that one is stopped already."""
    state = {"Status": "exited", "FinishedAt": ago(0.5)}
    async with faked(tmp_path, state=state, policy="always") as (engine, one):
        stopping = asyncio.create_task(one.stop(20))
        async with asyncio.timeout(10):
            while not any("/stop" in asked for asked in engine.asked):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        engine.state |= {"Status": "running", "Pid": 8}
        await stopping
        assert engine.state["Status"] == "exited"


@pytest.mark.parametrize(
    ("policy", "ended_s_ago"), [("no", 0.5), ("always", 60.0), ("unless-stopped", 60.0)]
)
async def test_one_that_will_not_come_back_is_not_waited_for(
    tmp_path: Path, policy: str, ended_s_ago: float
) -> None:
    state = {"Status": "exited", "FinishedAt": ago(ended_s_ago)}
    async with faked(tmp_path, state=state, policy=policy) as (engine, one):
        await one.stop(5)
        assert [asked.rpartition("/")[2] for asked in engine.asked[-3:]] == [
            "json",
            "stop?t=3",
            "json",
        ]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((409, {"message": "is marked for removal"}), "start: is marked for removal"),
        ((500, {"message": "could not select device driver"}), "start: could not select device"),
        ((500, "boom"), "start: boom"),
        ((500, {}), "did not answer as an engine"),
    ],
)
async def test_a_start_that_the_engine_refuses_says_why(
    tmp_path: Path, answer: tuple[int, Any], said: str
) -> None:
    async with faked(tmp_path, answers={"start": answer}) as (_, one):
        with pytest.raises(LoadFailed, match=f"^container tts: .*{said}"):
            await one.start(5)


@pytest.mark.parametrize("answer", [(200, "hello"), (200, {}), (200, []), (200, {"State": 7})])
async def test_who_answers_nonsense_is_no_engine(tmp_path: Path, answer: tuple[int, Any]) -> None:
    async with faked(tmp_path, answers={"json": answer}) as (_, one):
        with pytest.raises(ConsumerFailed, match="did not answer as an engine"):
            await one.state()


@pytest.mark.parametrize(
    ("verb", "status", "works"),
    [
        ("start", "running", True),
        ("start", "created", False),
        ("stop", "exited", True),
        ("stop", "running", False),
    ],
)
async def test_when_the_engine_hangs_the_containers_state_decides(
    tmp_path: Path, verb: str, status: str, works: bool
) -> None:
    state = {"Status": status}
    async with faked(tmp_path, hanging={verb}, state=state) as (_, one):
        doing = one.start(0.3) if verb == "start" else one.stop(0.3)
        if works:
            await doing
            return
        with pytest.raises((LoadFailed, UnloadFailed)) as caught:
            await doing
        assert f"not {verb}" in caught.value.detail
        assert caught.value.detail.endswith(f"within 0.3 s, it is {status}")


async def test_when_nothing_answers_the_deadline_still_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container_module, "_STATE_TIMEOUT_S", 0.2)
    async with faked(tmp_path, hanging={"version"}) as (_, one):
        began = time.monotonic()
        with pytest.raises(UnloadFailed, match=r"stop hung for 0\.3 s, then: .* did not answer"):
            await one.stop(0.3)
        assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("state", "text", "active", "stopped", "healthy"),
    [
        ({"Status": "running"}, "running", True, False, None),
        ({"Status": "running", "Health": {"Status": ""}}, "running", True, False, None),
        ({"Status": "running", "Health": {"Status": "none"}}, "running", True, False, None),
        (
            {"Status": "running", "Health": {"Status": "starting"}},
            "running (starting)",
            True,
            False,
            False,
        ),
        (
            {"Status": "running", "Health": {"Status": "healthy"}},
            "running (healthy)",
            True,
            False,
            True,
        ),
        ({"Status": "restarting", "ExitCode": 1}, "restarting (exit code 1)", False, False, None),
        ({"Status": "exited", "ExitCode": 137}, "exited (exit code 137)", False, True, None),
        ({"Status": "dead"}, "dead", False, True, None),
        ({"Status": "removing"}, "removing", False, False, None),
    ],
)
async def test_what_the_engine_shows_is_understood(  # noqa: PLR0917
    tmp_path: Path,
    state: dict[str, Any],
    text: str,
    active: bool,
    stopped: bool,
    healthy: bool | None,
) -> None:
    async with faked(tmp_path, state=state) as (_, one):
        found = await one.state()
        assert str(found) == text
        assert (found.is_active, found.is_stopped, found.healthy) == (active, stopped, healthy)


async def test_without_a_health_route_the_containers_own_health_check_counts(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    engine = FakeEngine({"Status": "running", "Health": {"Status": "starting"}})
    path = tmp_path / "engine.sock"
    port = free_port()
    config = ConsumerConfig(
        url=f"http://127.0.0.1:{port}", container="tts", container_socket=str(path)
    )
    one = make_controller("tts", config, session)
    listening = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", port)
    async with serving(engine, path), listening:
        report = await one.probe()
        assert (report.reachable, report.healthy, report.alive) == (True, False, True)
        assert report.detail == "container tts is running (starting)"
        loading = asyncio.create_task(one.load(NOWHERE))
        async with asyncio.timeout(10):
            while len(engine.asked) < 8:  # noqa: ASYNC110  several looks are wanted
                await asyncio.sleep(0.01)
        assert not loading.done()
        engine.state["Health"] = {"Status": "healthy"}
        async with asyncio.timeout(10):
            await loading
        assert (await one.probe()).healthy
        await one.close()
