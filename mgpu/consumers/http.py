"""A consumer that is loaded and unloaded through its own HTTP endpoints.

A request to load or unload may have been acted on even when its answer never came, so it is sent
once; only a refused connection, which reached nobody, is tried again. A deadline is one
``asyncio.timeout`` over connecting, waiting and reading together, which a server that drips bytes
cannot stretch.
"""

from __future__ import annotations

import asyncio
import json

import aiohttp
import structlog
from multidict import CIMultiDict
from tenacity import AsyncRetrying, retry_if_exception
from yarl import URL

from mgpu.config.model import CallConfig, ConsumerConfig
from mgpu.consumers.probe import POLL_WAIT, probe, wait_until
from mgpu.consumers.wire import READ_BYTES, UNBOUNDED, Answer, bare, is_refused, reason
from mgpu.errors import LoadFailed, UnloadFailed
from mgpu.ports import Placement, ProbeReport

_REFUSED_GRACE_S = 2.0
"""How long a refused load is tried again: the service may be in the middle of a restart, but a job
should not wait long to hear that it is down."""

_log = structlog.get_logger(__name__)


class HttpController:
    """One consumer controlled through its endpoints; implements ``ports.ConsumerController``.

    Where the configuration names no load or no unload route, that call returns at once. The
    session is the caller's to close.
    """

    def __init__(self, name: str, config: ConsumerConfig, session: aiohttp.ClientSession) -> None:
        self._name = name
        self._config = config
        self._session = session

    async def load(self, placement: Placement) -> None:  # noqa: ARG002  no service takes it by HTTP
        """Call the load route and wait until a probe confirms; raise ``LoadFailed``.

        What a failed load left behind is unloaded, within the unload's own deadline.
        """
        if self._config.load is None:
            return
        deadline = asyncio.get_running_loop().time() + self._config.load.timeout_s
        try:
            await self.load_until(deadline)
        except LoadFailed:
            await self.clean_up()
            raise

    async def load_until(self, deadline: float) -> None:
        """Do the work of ``load`` without cleaning up, by loop time ``deadline`` at the latest."""
        call = self._config.load
        if call is None:
            return
        what = self._describe(call)
        try:
            async with asyncio.timeout_at(deadline):
                answer = await self._insist(call)
        except TimeoutError:
            raise LoadFailed(f"{what} did not end within {call.timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise LoadFailed(f"{what}: {reason(error)}") from error
        if answer.status not in call.ok:
            raise LoadFailed(f"{what} answered {answer}")
        if self._config.resident is not None:
            await wait_until(
                lambda report: report.resident is True,
                self.probe,
                deadline=deadline,
                what=f"{what} answered {answer.status}, but the consumer was not resident",
            )
        elif self._config.health is not None:
            await wait_until(
                lambda report: report.healthy,
                self.probe,
                deadline=deadline,
                what=f"{what} answered {answer.status}, but the consumer was not healthy",
            )

    async def unload(self) -> None:
        """Call the unload route; raise ``UnloadFailed``.

        Where nothing listens, nothing is loaded as far as HTTP can tell: that is no failure.
        """
        call = self._config.unload
        if call is None:
            return
        what = self._describe(call)
        try:
            async with asyncio.timeout(call.timeout_s):
                answer = await self._send(call)
        except TimeoutError:
            raise UnloadFailed(f"{what} did not end within {call.timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            if is_refused(error):
                return
            raise UnloadFailed(f"{what}: {reason(error)}") from error
        if answer.status not in call.ok:
            raise UnloadFailed(f"{what} answered {answer}")

    async def clean_up(self) -> None:
        """Unload what a failed load may have left; a failure is only logged."""
        try:
            await self.unload()
        except UnloadFailed as error:
            _log.warning("clean_up_failed", consumer=self._name, error=error.detail)

    async def escalate(self) -> None:
        """Raise ``UnloadFailed``: there is no harder way over HTTP."""
        raise UnloadFailed(
            f"consumer {self._name}: it has no unit, container or command that could be stopped"
        )

    async def probe(self) -> ProbeReport:
        """Ask the health and the resident route, within 2 s together; never raises."""
        return await probe(self._config, self._session)

    async def close(self) -> None:
        """Return: nothing is held between calls."""

    async def _insist(self, call: CallConfig) -> Answer:
        loop = asyncio.get_running_loop()
        give_up = loop.time() + _REFUSED_GRACE_S
        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: is_refused(error) and loop.time() < give_up),
            wait=POLL_WAIT,
            reraise=True,
        )
        return await retrying(self._send, call)

    async def _send(self, call: CallConfig) -> Answer:
        """Return when the answer has ended: some services load until its last byte."""
        headers = CIMultiDict(call.headers)
        data = None
        if call.body is not None:
            data = json.dumps(call.body).encode()
            headers.setdefault("Content-Type", "application/json")
        async with self._session.request(
            call.method,
            URL(self._config.url + call.path),
            data=data,
            headers=headers,
            allow_redirects=False,
            timeout=UNBOUNDED,
        ) as response:
            beginning = b""
            async for chunk in response.content.iter_chunked(READ_BYTES):
                beginning += chunk[: READ_BYTES - len(beginning)]
            return Answer(response.status, beginning, complete=False)

    def _describe(self, call: CallConfig) -> str:
        return f"consumer {self._name}: {call.method} {bare(call.path)}"
