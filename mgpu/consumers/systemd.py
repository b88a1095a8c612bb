"""A systemd unit as a way to make a consumer resident or absent: started and stopped.

``systemctl`` is asked rather than D-Bus: it is there wherever systemd is, it waits for the job to
end, and its exit can be bounded by killing it. A ``systemctl`` that hangs decides nothing: past
the deadline it is killed and the unit's own state says whether the unit did what was wanted.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Literal

from mgpu.errors import ConfigError, ConsumerFailed, LoadFailed, UnloadFailed
from mgpu.ports import Whereabouts

_STATE_TIMEOUT_S = 2.0
_OUTPUT_CHARS = 300
_NAME = re.compile(r"[A-Za-z0-9:_\\][A-Za-z0-9:_.\\@-]*")
_TYPES = ("service", "target")
_MAX_NAME = 255


@dataclass(frozen=True, slots=True)
class UnitState:
    """What ``systemctl show`` says of a unit; the words are systemd's."""

    load: str
    active: str
    sub: str
    result: str
    control_group: str = ""
    run: str = ""
    """Its invocation ID: another one at every start, by whomever (systemd.exec(5))."""

    @property
    def is_active(self) -> bool:
        """The unit runs and has finished starting."""
        return self.active in {"active", "reloading"}

    @property
    def is_stopped(self) -> bool:
        """No process of the unit is left."""
        return self.active in {"inactive", "failed"}

    @property
    def healthy(self) -> bool | None:
        """None: systemd has no health checks."""
        return None

    @property
    def whereabouts(self) -> Whereabouts:
        """Where its processes are to be found."""
        return Whereabouts(control_group=self.control_group)

    def __str__(self) -> str:
        if self.load != "loaded":
            return f"{self.active}, its file is {self.load}"
        failed = f", result {self.result}" if self.result not in {"", "success"} else ""
        return f"{self.active} ({self.sub}{failed})"


@dataclass(frozen=True, slots=True)
class _Exit:
    code: int
    output: str
    error: str


class SystemdUnit:
    """One unit of the system's or the user's service manager.

    ``systemctl`` is the command to call, with leading arguments if any. Raises ``ConfigError`` for
    a name that is no unit's.
    """

    def __init__(
        self,
        unit: str,
        scope: Literal["system", "user"] = "system",
        *,
        systemctl: Sequence[str] = ("systemctl",),
    ) -> None:
        self.name = unit_name(unit)
        user = ("--user",) if scope == "user" else ()
        self._command = (*systemctl, *user, "--no-ask-password")

    async def start(self, timeout_s: float) -> None:
        """Return when the unit is active; raise ``LoadFailed`` after ``timeout_s`` at the latest.

        A unit has GPUs of its own. Only when systemctl hangs it takes up to 2 s more, to ask for
        the unit's state.
        """
        state = await self._change("start", timeout_s, LoadFailed)
        if state is not None and not state.is_active:
            raise LoadFailed(f"{self.name}: not started within {timeout_s:.1f} s, it is {state}")

    async def stop(self, timeout_s: float) -> None:
        """Return when the unit is stopped; otherwise as ``start``, with ``UnloadFailed``."""
        state = await self._change("stop", timeout_s, UnloadFailed)
        if state is not None and not state.is_stopped:
            raise UnloadFailed(f"{self.name}: not stopped within {timeout_s:.1f} s, it is {state}")

    async def close(self) -> None:
        """Return: nothing is held between calls."""

    async def state(self) -> UnitState:
        """Ask how the unit is, within 2 s; raise ``ConsumerFailed`` when nobody can say."""
        arguments = (
            "show",
            "--property=LoadState,ActiveState,SubState,Result,ControlGroup,InvocationID",
            self.name,
        )
        try:
            ended = await self._run(arguments, _STATE_TIMEOUT_S)
        except OSError as error:
            raise ConsumerFailed(self._cannot_run(error)) from error
        if ended is None:
            raise ConsumerFailed(f"{self.name}: systemctl show hung for {_STATE_TIMEOUT_S:g} s")
        if ended.code:
            raise ConsumerFailed(self._complaint("show", ended))
        shown = dict(line.split("=", 1) for line in ended.output.splitlines() if "=" in line)
        return UnitState(
            load=shown.get("LoadState", "unknown"),
            active=shown.get("ActiveState", "unknown"),
            sub=shown.get("SubState", ""),
            result=shown.get("Result", ""),
            control_group=shown.get("ControlGroup", ""),
            run=shown.get("InvocationID", ""),
        )

    async def _change(
        self, verb: str, timeout_s: float, failure: type[LoadFailed | UnloadFailed]
    ) -> UnitState | None:
        """None: systemctl did it. Otherwise it hung, and this is how the unit was found."""
        try:
            ended = await self._run((verb, self.name), timeout_s)
        except OSError as error:
            raise failure(self._cannot_run(error)) from error
        if ended is not None:
            if ended.code:
                raise failure(self._complaint(verb, ended))
            return None
        try:
            return await self.state()
        except ConsumerFailed as error:
            raise failure(
                f"{self.name}: systemctl {verb} hung for {timeout_s:.1f} s, then: {error.detail}"
            ) from error

    async def _run(self, arguments: Sequence[str], timeout_s: float) -> _Exit | None:
        """Run systemctl to its end; None when it had to be killed. Raises ``OSError``."""
        try:
            async with asyncio.timeout(timeout_s), _group((*self._command, *arguments)) as process:
                output, error = await process.communicate()
                code = await process.wait()
        except TimeoutError:
            return None
        return _Exit(code, output.decode(errors="replace"), error.decode(errors="replace"))

    def _cannot_run(self, error: OSError) -> str:
        return f"{self.name}: cannot run {self._command[0]}: {error.strerror}"

    def _complaint(self, verb: str, ended: _Exit) -> str:
        said = " ".join(ended.error.split())[:_OUTPUT_CHARS] or f"exit status {ended.code}"
        denied = "access denied" in said.lower() or "authentication required" in said.lower()
        hint = "; a polkit rule has to allow it to the broker's user" if denied else ""
        return f"{self.name}: systemctl {verb}: {said.rstrip('.')}{hint}"


@asynccontextmanager
async def _group(command: Sequence[str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process in a group of its own, which is killed, children included, when the block fails."""
    starting = asyncio.ensure_future(_start(command))
    try:
        # Cancelled half-way, asyncio would kill the process that it started, but not its group.
        process = await asyncio.shield(starting)
    except asyncio.CancelledError:
        await _kill(await starting)
        raise
    try:
        yield process
    except BaseException:
        await _kill(process)
        raise


async def _start(command: Sequence[str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # The messages are matched and shown, so they must not depend on the user's language.
        env={**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""},
        start_new_session=True,
    )


async def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.communicate()


def unit_name(unit: str) -> str:
    """The unit's full name, ``.service`` added where a type is missing, as systemctl does.

    Raises ``ConfigError`` for what systemd.unit(5) does not allow, and for patterns and template
    names, which would reach more than one unit or none.
    """
    name = unit if unit.rpartition(".")[2] in _TYPES else f"{unit}.service"
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME or "@." in name:
        raise ConfigError(f"systemd_unit: {unit!r} is not the name of a systemd unit")
    return name
