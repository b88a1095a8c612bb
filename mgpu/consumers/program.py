"""A program that the broker starts, watches and stops itself, and whose output it logs.

It runs below a reaper (``mgpu.consumers.reaper``), which ends everything the program has started
when the broker asks for it or is no more. The broker holds the reaper's standard input for as long
as the program is to run, and reads what the program prints from its standard output.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from yarl import URL

from mgpu.config.keys import secrets_of_environment
from mgpu.config.model import ConsumerConfig
from mgpu.consumers.output import OutputLog
from mgpu.errors import LoadFailed, UnloadFailed
from mgpu.ports import Whereabouts

_REAPER = str(Path(__file__).with_name("reaper.py"))
_CONNECT_TIMEOUT_S = 1.0
_KILLED_S = 5.0
"""How long a killed reaper may take to be gone."""
_NOT_INHERITED = ("MGPU_", "NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_")
"""The broker's own settings and keys, and what lets a process speak to systemd in its place."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ProgramState:
    """Whether a program runs and, when it does not, how it ended and what it said last."""

    running: bool
    text: str
    pid: int | None = None
    """Of the reaper, which the program and all that it starts descend from."""
    run: str = ""
    """A number drawn at its start."""

    @property
    def is_active(self) -> bool:
        """It has been started and has not ended."""
        return self.running

    @property
    def is_stopped(self) -> bool:
        """No process of it is left."""
        return not self.running

    @property
    def healthy(self) -> bool | None:
        """None: a process has nothing to say of itself."""
        return None

    @property
    def whereabouts(self) -> Whereabouts:
        """Where its processes are to be found."""
        return Whereabouts(root_pid=self.pid)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class _Run:
    """One life of the program. ``watching`` ends when the reaper has, with its exit status."""

    reaper: asyncio.subprocess.Process
    output: OutputLog
    watching: asyncio.Task[int]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)


class Program:
    """One consumer's program; implements ``supervised.Supervisor``.

    ``died`` is called when it ends without having been asked to.
    """

    def __init__(self, consumer: str, config: ConsumerConfig, died: Callable[[], None]) -> None:
        assert config.command is not None  # noqa: S101 - who has none has no program
        self.name = Path(config.command[0]).name
        self._command = config.command
        self._consumer = consumer
        self._config = config
        self._died = died
        self._run: _Run | None = None
        self._stopping = False
        self._ended = "not started"

    async def start(self, timeout_s: float) -> None:
        """Return when the program has been started; whether it serves is to be asked.

        Raises ``LoadFailed`` when something else serves at its address already.
        """
        if self._is_running():
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._refuse_a_stranger()
                starting = asyncio.ensure_future(self._spawn())
                try:
                    # Cancelled half-way, asyncio would not say which process it has started.
                    self._run = await asyncio.shield(starting)
                except asyncio.CancelledError:
                    self._run = await starting
                    raise
        except TimeoutError:
            raise LoadFailed(f"{self.name}: not started within {timeout_s:.1f} s") from None
        except OSError as error:
            where = f" in {self._config.cwd}" if self._config.cwd else ""
            raise LoadFailed(f"{self.name}: cannot start{where}: {error.strerror}") from error

    async def stop(self, timeout_s: float) -> None:
        """Ask the reaper to end the program; past its deadline, or the grace, it is killed."""
        run = self._run
        if run is None:
            return
        self._stopping = True
        if run.reaper.stdin is not None:
            run.reaper.stdin.close()
        done, _ = await asyncio.wait([run.watching], timeout=timeout_s)
        if not done:
            _kill(run.reaper)
            done, _ = await asyncio.wait([run.watching], timeout=_KILLED_S)
        if not done:
            raise UnloadFailed(
                f"{self.name}: killed, but process {run.reaper.pid} or one that it started is "
                "still there"
            )

    async def state(self) -> ProgramState:
        """Whether it runs; never raises."""
        run = self._run
        if run is not None and self._is_running():
            return ProgramState(running=True, text="running", pid=run.reaper.pid, run=run.id)
        return ProgramState(running=False, text=self._ended)

    async def close(self) -> None:
        """End the program: it does not outlive the broker."""
        try:
            await self.stop(self._config.stop_grace_s + _KILLED_S)
        except UnloadFailed as error:
            _log.warning("program left behind", consumer=self._consumer, error=error.detail)

    def _is_running(self) -> bool:
        return self._run is not None and not self._run.watching.done()

    async def _refuse_a_stranger(self) -> None:
        """Whoever serves at the consumer's address before its program runs is somebody else."""
        url = URL(self._config.url)
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                _, writer = await asyncio.open_connection(url.host, url.port)
        except OSError:
            return
        writer.close()
        raise LoadFailed(
            f"{self.name}: something else listens at {self._config.url} already: end that, or give "
            "this consumer another port"
        )

    async def _spawn(self) -> _Run:
        reaper = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            _REAPER,
            str(self._config.stop_grace_s),
            "--",
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=self._config.cwd,
            env=self._environment(),
            start_new_session=True,
        )
        self._stopping = False
        output = OutputLog(self._consumer, secrets_of_environment(self._config))
        _log.info("program started", consumer=self._consumer, program=self.name, pid=reaper.pid)
        watching = asyncio.ensure_future(self._watch(reaper, output))
        return _Run(reaper, output, watching)

    def _environment(self) -> Mapping[str, str]:
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)
        }
        return inherited | self._config.environment

    async def _watch(self, reaper: asyncio.subprocess.Process, output: OutputLog) -> int:
        assert reaper.stdout is not None  # noqa: S101 - it is a pipe
        following = asyncio.ensure_future(output.follow(reaper.stdout))
        await _exit_of(reaper.pid)
        # Had the reaper itself been killed, its group would be left, and hold the output open.
        _kill(reaper)
        await asyncio.wait([following], timeout=_KILLED_S)
        following.cancel()
        status = await reaper.wait()
        self._ended = _how(status) + output.last_words()
        if self._stopping:
            _log.info("program stopped", consumer=self._consumer, program=self.name)
        else:
            how = _how(status)
            _log.warning("program ended", consumer=self._consumer, program=self.name, how=how)
            asyncio.get_running_loop().call_soon(self._died)
        return status


def _how(status: int) -> str:
    """Say how a reaper ended; one that was killed ends like a program that was."""
    number = -status if status < 0 else status - 128
    try:
        return f"ended by {signal.Signals(number).name}"
    except ValueError:
        return f"ended with exit status {status}"


async def _exit_of(pid: int) -> None:
    """Return when a child has ended, whoever may still hold what it wrote to."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(process, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(process)
        os.close(process)


def _kill(reaper: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(reaper.pid, signal.SIGKILL)
