"""A consumer that is loaded and unloaded through its own HTTP endpoints.

A request to load or unload may have been acted on even when its answer never came, so it is sent
once; only a refused connection, which reached nobody, is tried again. A deadline is one
``asyncio.timeout`` over connecting, waiting and reading together, which a server that drips bytes
cannot stretch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import aiohttp
import structlog
from tenacity import AsyncRetrying, retry_if_exception, retry_if_result

from mgpu.config import fingerprint, gpu_placeholders
from mgpu.config.model import CallConfig, ConsumerConfig, RequestConfig, UnloadConfig
from mgpu.consumers.items import items, rendered
from mgpu.consumers.probe import POLL_WAIT, ask_busy, evaluate, fetch, probe, wait_until
from mgpu.consumers.wire import READ_BYTES, UNBOUNDED, Answer, bare, is_refused, reason, request
from mgpu.errors import LoadFailed, LoadNotBegun, UnloadDeclined, UnloadFailed
from mgpu.ports import Placement, ProbeReport

_REFUSED_GRACE_S = 2.0
"""How long a refused load is tried again: the service may be in the middle of a restart, but a job
should not wait long to hear that it is down."""

_SUCCESS = range(200, 300)

_TURNED_AWAY = frozenset({401, 403, 404, 405})
"""A load that is answered so has not begun: the key is wrong, or the path, or what it names."""

_log = structlog.get_logger(__name__)


class HttpController:
    """One consumer controlled through its endpoints; implements ``ports.ConsumerController``.

    Where the configuration names no load or no unload route, that call returns at once. The
    session is the caller's to close. ``unloaded`` outlives this controller: each service that is
    remembered and was asked to unload last, by its fingerprint, with the run that was asked.
    ``listener`` tells which run listens at the consumer's address, where nobody else says
    ``found``; it may block. A run is a text; empty where it cannot be told.
    """

    def __init__(
        self,
        name: str,
        config: ConsumerConfig,
        session: aiohttp.ClientSession,
        unloaded: MutableMapping[str, str] | None = None,
        listener: Callable[[], str] = str,
    ) -> None:
        self._name = name
        self._config = config
        self._session = session
        self._listener = listener
        self._service = fingerprint.service(config)
        self._asked_to_unload: MutableMapping[str, str] = {}
        if unloaded is not None and config.is_remembered:
            self._asked_to_unload = unloaded
        self.run = self._asked_to_unload.get(self._service, "")
        """Which run of the service was found last."""

    async def load(self, placement: Placement, body: Any = None) -> None:
        """Call the load route and wait until a probe confirms; raise ``LoadFailed``.

        ``body``: what it is to say instead of what is configured. What a failed load left behind is
        unloaded, within the unload's own deadline.
        """
        if self._config.load is None:
            return
        deadline = asyncio.get_running_loop().time() + self._config.load.timeout_s
        try:
            await self.load_until(deadline, placement, body)
        except LoadNotBegun:
            raise
        except LoadFailed:
            await self.clean_up()
            raise

    async def load_until(self, deadline: float, placement: Placement, body: Any = None) -> None:
        """Do the work of ``load`` without cleaning up, by loop time ``deadline`` at the latest."""
        call = self._config.load
        if call is None:
            return
        if body is not None:
            filled = gpu_placeholders.fill_json(body, placement)
            call = call.model_copy(update={"body": filled})
        what = self._describe(call)
        heard = f"{what} needs no repeating"
        if body is not None or await self._is_to_be_sent(call):
            self.forget()
            answer = await self._accepted_load(call, deadline)
            heard = f"{what} answered {answer.status}"
        if self._config.resident is not None:
            await wait_until(
                lambda report: report.resident is True,
                self.probe,
                deadline=deadline,
                what=f"{heard}, but the consumer was not resident",
            )
        elif self._config.health is not None:
            await wait_until(
                lambda report: report.healthy,
                self.probe,
                deadline=deadline,
                what=f"{heard}, but the consumer was not healthy",
            )

    async def _is_to_be_sent(self, call: CallConfig) -> bool:
        """Whether a load is: where two in a row do harm, only to one that is not resident."""
        if call.repeatable:
            return True
        if self._config.resident is None:
            return self._unloaded
        return (await self.probe()).resident is not True

    async def _accepted_load(self, call: CallConfig, deadline: float) -> Answer:
        what = self._describe(call)
        try:
            async with asyncio.timeout_at(deadline):
                answer = await self._insist(call)
        except TimeoutError:
            raise LoadFailed(f"{what} did not end within {call.timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            failure = LoadNotBegun if is_refused(error) else LoadFailed
            raise failure(f"{what}: {reason(error)}") from error
        if problem := _problem(call, answer):
            failure = LoadNotBegun if answer.status in _TURNED_AWAY else LoadFailed
            raise failure(f"{what} {problem}")
        return answer

    async def unload(self) -> None:
        """Wait until the consumer is idle and call the unload route; raise ``UnloadFailed``.

        ``UnloadDeclined`` when it was not asked. All of it within the call's ``timeout_s``. Where
        nothing listens, nothing is loaded as far as HTTP can tell: that is no failure.
        """
        call = self._config.unload
        if call is None or (self._unloaded and not call.repeatable):
            return
        deadline = asyncio.get_running_loop().time() + call.timeout_s
        what = self._describe(call)
        await self.wait_until_idle(deadline, f"{what} was not sent")
        try:
            async with asyncio.timeout_at(deadline):
                calls = await self._calls(call)
                if self._config.is_remembered:
                    await self._look_who_listens()
                for each in calls:
                    self._asked_to_unload[self._service] = self.run
                    if problem := _problem(call, await self._send(each)):
                        raise UnloadFailed(f"{what} {problem}")
        except TimeoutError:
            raise UnloadFailed(f"{what} did not end within {call.timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            if is_refused(error):
                return
            raise UnloadFailed(f"{what}: {reason(error)}") from error
        if call.until_absent:
            await self._wait_until_absent(deadline, what)

    async def wait_until_idle(self, deadline: float, otherwise: str) -> None:
        """Return when the busy route does not say that it computes: an unload might break it.

        ``deadline`` is in the event loop's time. Raises ``UnloadDeclined``, beginning with
        ``otherwise``, when it computes to then.
        """
        asking = AsyncRetrying(retry=retry_if_result(bool), wait=POLL_WAIT)
        try:
            async with asyncio.timeout_at(deadline):
                await asking(ask_busy, self._config, self._session)
        except TimeoutError:
            raise UnloadDeclined(f"{otherwise}, as the consumer computes") from None

    async def _calls(self, call: UnloadConfig) -> Sequence[UnloadConfig]:
        """The one call, or one for each item that the consumer names."""
        each = call.for_each
        if each is None:
            return (call,)
        answer = await fetch(self._config, each, self._session)
        if answer.status not in _SUCCESS:
            raise UnloadFailed(f"{self._describe(each)} answered {answer}")
        try:
            return [rendered(call, item) for item in items(each.items, answer)]
        except ValueError as error:
            raise UnloadFailed(f"{self._describe(each)}: {error}") from error

    async def _wait_until_absent(self, deadline: float, what: str) -> None:
        """Return when the resident route says no, by the deadline at the latest.

        Who ends its process to unload (KoboldCpp) is waited for until it is back; one that is not
        by then has unloaded too.
        """
        last: ProbeReport | None = None

        async def ask() -> ProbeReport:
            nonlocal last
            last = await self.probe()
            return last

        try:
            await wait_until(
                lambda report: report.resident is False,
                ask,
                deadline=deadline,
                what=f"{what} was accepted, but the consumer was still resident",
                failure=UnloadFailed,
            )
        except UnloadFailed:
            if last is None or last.reachable:
                raise

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
        """Ask the health, resident and busy routes, within 2 s together; never raises.

        One that is remembered is resident unless it was asked to unload since its process began.
        """
        report = await probe(self._config, self._session)
        if not report.reachable:
            self.forget()
        if not (self._config.is_remembered and report.reachable):
            return report
        if self._unloaded:
            await self._look_who_listens()
        return replace(report, resident=not self._unloaded)

    def found(self, run: str) -> None:
        """Be told which run of the service is there: to a new one nothing was said yet."""
        if run and self.run and run != self.run:
            self.forget()
        self.run = run or self.run

    def forget(self) -> None:
        """It is asked to load, or its process has ended: the next one begins as it likes."""
        self._asked_to_unload.pop(self._service, None)

    @property
    def _unloaded(self) -> bool:
        """Asked to unload, as far as known, and not to load since."""
        return self._service in self._asked_to_unload

    async def _look_who_listens(self) -> None:
        self.found(await asyncio.to_thread(self._listener))

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
        async with request(self._session, self._config, call, UNBOUNDED) as response:
            beginning, complete = b"", True
            async for chunk in response.content.iter_chunked(READ_BYTES):
                complete = complete and len(beginning) + len(chunk) <= READ_BYTES
                beginning += chunk[: READ_BYTES - len(beginning)]
            return Answer(response.status, beginning, complete=complete)

    def _describe(self, call: RequestConfig) -> str:
        return f"consumer {self._name}: {call.method} {bare(call.path)}"


def _problem(call: CallConfig, answer: Answer) -> str:
    """Why an answer is not the success of a call; empty when it is."""
    if answer.status not in call.ok:
        return f"answered {answer}"
    if call.when is None:
        return ""
    try:
        return "" if evaluate(call.when, answer) else f"answered {answer}"
    except ValueError as error:
        return f"answered {answer.status}: {error}"
