"""A container as a way to make a consumer resident or absent: started and stopped.

It is reached through the Docker Engine API on a Unix socket, which Podman offers too. An engine
that hangs decides nothing: past the deadline the container's own state says whether it did what was
wanted. Pausing is not used: a frozen process keeps all its VRAM. A container that somebody has
paused is resumed when it is to be loaded, and before it is stopped, so that it can end in order.

The status codes are those of the Engine API's reference, version 1.41 and later.
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
from aiodocker import Docker, DockerError

from mgpu.config.problems import did_you_mean
from mgpu.consumers.wire import UNBOUNDED, quote
from mgpu.errors import ConfigError, ConsumerFailed, LoadFailed, UnloadFailed
from mgpu.ports import Whereabouts

_STATE_TIMEOUT_S = 2.0
_RESTART_S = 5.0
"""An engine that is to restart a container has done so within this from its end, and until then may
answer a stop by saying that it is stopped already (Podman; 2.7 s were seen on a busy machine)."""
_LOOK_S = 0.1
_NO_CONNECTION = 900
"""aiodocker's own status for an engine that cannot be reached."""
_BAD_REQUEST, _NOT_FOUND = 400, 404
_SCHEME = "unix://"
_ENGINE_TROUBLE = (DockerError, aiohttp.ClientError, OSError, ValueError, LookupError, TypeError)
"""What a call may raise; the last three when the engine answers what is no answer."""


@dataclass(frozen=True, slots=True)
class ContainerState:
    """What the engine says of a container; the words are Docker's.

    ``id`` and ``pid`` (of its first process, 0 when it does not run) tell whose processes are its.
    """

    id: str
    pid: int
    status: str
    health: str
    exit_code: int
    restarts: bool
    """Its engine starts it again when it dies."""
    ended_at: datetime | None = None
    """When its last run ended, by this machine's clock; None where that is not told."""
    run: str = ""
    """Its id and when it was started, which a container made anew under its name has not."""

    @property
    def is_active(self) -> bool:
        """It runs, and is neither paused nor being restarted."""
        return self.status == "running"

    @property
    def is_stopped(self) -> bool:
        """No process of it is left, and none will come by itself."""
        return self.status in {"created", "configured", "initialized", "exited", "stopped", "dead"}

    @property
    def healthy(self) -> bool | None:
        """What its health check says; None where it has none."""
        return self.health == "healthy" if self.health not in {"", "none"} else None

    @property
    def whereabouts(self) -> Whereabouts:
        """Where its processes are to be found."""
        return Whereabouts(container=self.id, root_pid=self.pid or None)

    def may_come_back(self, told_at: datetime) -> bool:
        """Whether its engine may be about to restart it, though told to stop it at ``told_at``.

        Who ended by that stop stays stopped. "stopped" is one whose end Podman has not dealt with.
        """
        if not self.restarts or self.ended_at is None:
            return False
        by_itself = self.ended_at < told_at or self.status == "stopped"
        return by_itself and datetime.now(UTC) - self.ended_at < timedelta(seconds=_RESTART_S)

    def __str__(self) -> str:
        if self.is_active:
            return f"running ({self.health})" if self.healthy is not None else "running"
        code = f" (exit code {self.exit_code})" if self.exit_code else ""
        return f"{self.status}{code}"


class Container:
    """One container of the engine behind ``socket``; implements ``supervised.Supervisor``."""

    def __init__(self, container: str, socket: Path, *, grace_s: float) -> None:
        self.name = f"container {container}"
        self._container = container
        self._socket = socket
        self._grace_s = grace_s
        self._ended_at: datetime | None = None
        """When the last run ended that is known to have been the last."""
        self._connector: aiohttp.UnixConnector | None = None
        self._engine: Docker | None = None

    async def start(self, timeout_s: float) -> None:
        """Return when it runs; a container has the GPUs that it was made with.

        Only when the engine hangs it takes up to 2 s more, to ask for the container's state.
        """
        state = await self._change(self._start, "start", timeout_s, LoadFailed)
        if state is not None and not state.is_active:
            raise LoadFailed(f"{self.name}: not started within {timeout_s:.1f} s, it is {state}")

    async def stop(self, timeout_s: float) -> None:
        """Return when it is stopped: it has its grace, and is killed by the engine after that.

        One that is not there has nothing left to stop.
        """
        state = await self._change(self._stop, "stop", timeout_s, UnloadFailed)
        if state is not None and not state.is_stopped:
            raise UnloadFailed(f"{self.name}: not stopped within {timeout_s:.1f} s, it is {state}")

    async def state(self) -> ContainerState:
        """Ask how it is, within 2 s; raise ``ConsumerFailed`` when nobody can say."""
        try:
            async with asyncio.timeout(_STATE_TIMEOUT_S):
                return await self._inspect()
        except TimeoutError:
            raise ConsumerFailed(
                f"{self.name}: the engine at {self._socket} did not answer "
                f"within {_STATE_TIMEOUT_S:g} s"
            ) from None
        except _ENGINE_TROUBLE as error:
            raise ConsumerFailed(await self._complaint("inspect", error)) from error

    async def close(self) -> None:
        """Give back the connection; the container goes on as it is."""
        if self._engine is not None:
            await self._engine.close()
            self._engine = None
        if self._connector is not None:
            await self._connector.close()
            self._connector = None

    async def _start(self) -> None:
        container = self._docker.containers.container(self._container)
        if (await self._inspect()).status == "paused":
            await container.unpause()
        await container.start()

    async def _stop(self) -> None:
        """Stop it until it stays so: the engine may be about to restart one that has just died."""
        container = self._docker.containers.container(self._container)
        try:
            while True:
                if (await self._inspect()).status == "paused":
                    await container.unpause()
                told_at = datetime.now(UTC)
                await container.stop(t=math.ceil(self._grace_s))
                state = await self._inspect()
                stays = state.ended_at == self._ended_at or not state.may_come_back(told_at)
                if state.is_stopped and stays:
                    self._ended_at = state.ended_at
                    return
                await asyncio.sleep(_LOOK_S)
        except DockerError as error:
            if error.status != _NOT_FOUND:
                raise

    async def _inspect(self) -> ContainerState:
        shown = await self._docker.containers.container(self._container).show()
        state: Mapping[str, Any] = shown["State"]
        policy = (shown.get("HostConfig") or {}).get("RestartPolicy") or {}
        return ContainerState(
            id=str(shown["Id"]),
            pid=int(state.get("Pid") or 0),
            status=str(state["Status"]),
            health=str((state.get("Health") or {}).get("Status", "")),
            exit_code=int(state.get("ExitCode") or 0),
            restarts=policy.get("Name", "") not in {"", "no"},
            ended_at=_time(state.get("FinishedAt")),
            run=f"{shown['Id']} {state.get('StartedAt', '')}",
        )

    async def _change(
        self,
        change: Callable[[], Awaitable[None]],
        verb: str,
        timeout_s: float,
        failure: type[LoadFailed | UnloadFailed],
    ) -> ContainerState | None:
        """None: the engine did it. Otherwise it hung, and this is how the container was found."""
        try:
            async with asyncio.timeout(timeout_s):
                await change()
        except TimeoutError:
            pass
        except _ENGINE_TROUBLE as error:
            raise failure(await self._complaint(verb, error)) from error
        else:
            return None
        try:
            return await self.state()
        except ConsumerFailed as error:
            raise failure(
                f"{self.name}: {verb} hung for {timeout_s:.1f} s, then: {error.detail}"
            ) from error

    @property
    def _docker(self) -> Docker:
        """The engine's client, made when it is first needed: that takes a running event loop."""
        if self._engine is None:
            # The connector decides where calls go, and gives each a connection of its own, as all
            # control calls have; with a URL given, no context of the user's is looked up.
            self._connector = aiohttp.UnixConnector(str(self._socket), force_close=True)
            url = f"{_SCHEME}localhost"
            self._engine = Docker(url=url, connector=self._connector, timeout=UNBOUNDED)
        return self._engine

    async def _complaint(self, verb: str, error: Exception) -> str:
        """Say what went wrong in the words of the engine, or why it cannot be asked."""
        if not isinstance(error, DockerError):
            return f"{self.name}: {verb}: {self._socket} did not answer as an engine: {error!r}"
        if error.status == _NO_CONNECTION:
            return f"{self.name}: {self._unreachable(error)}"
        if error.status == _BAD_REQUEST:
            # An engine that was replaced may not speak the version any more that was agreed on.
            await self.close()
        if error.status == _NOT_FOUND:
            return f"no container is called {self._container!r}{await self._nearest()}"
        return f"{self.name}: {verb}: {quote(error.message.encode())}"

    def _unreachable(self, error: DockerError) -> str:
        cause = error.__context__
        number = cause.errno if isinstance(cause, OSError) else None
        match number:
            case errno.ENOENT:
                return (
                    f"there is no {self._socket}: start Docker or Podman's socket, or name another "
                    "one by container_socket"
                )
            case errno.EACCES | errno.EPERM:
                return (
                    f"no permission to use {self._socket}: the broker's user has to be in the "
                    "group that owns it"
                )
            case errno.ECONNREFUSED:
                return f"nobody listens at {self._socket}: the engine does not run"
            case _:
                return f"{self._socket}: {cause}"

    async def _nearest(self) -> str:
        """Name the container that may be meant; empty when there is none, or nobody can say."""
        try:
            async with asyncio.timeout(_STATE_TIMEOUT_S):
                found = await self._docker.containers.list(all=True)
                names = [name.lstrip("/") for one in found for name in one["Names"]]
        except (TimeoutError, *_ENGINE_TROUBLE):
            return ""
        return f"; {did_you_mean(self._container, names, what='containers')}"


def _time(text: str | None) -> datetime | None:
    """A time as the engines write it, in RFC 3339 with nanoseconds; they write year 1 for never."""
    found = datetime.fromisoformat(text) if text else None
    return found if found and found.year > 1 else None


def socket_path(given: str | None, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the engine listens: as given, as $DOCKER_HOST says, or where one is usually found.

    Both may be ``unix:///PATH`` or ``/PATH``. Raises ``ConfigError`` for anything else: the GPU is
    this machine's, and so is the engine.
    """
    named = given or environ.get("DOCKER_HOST")
    if named:
        path = named.removeprefix(_SCHEME)
        if not path.startswith("/"):
            key = "container_socket" if given else "DOCKER_HOST"
            raise ConfigError(f"{key}: {named!r} is not a Unix socket: unix:///PATH or /PATH")
        return Path(path)
    runtime = environ.get("XDG_RUNTIME_DIR")
    private = [Path(runtime, "docker.sock"), Path(runtime, "podman/podman.sock")] if runtime else []
    usual = [Path("/var/run/docker.sock"), *private, Path("/run/podman/podman.sock")]
    return next((path for path in usual if path.is_socket()), usual[0])
