"""Who holds the lease of work that goes on after the consumer has answered.

A task of its own, the leaseholder, since it may have to outlive the request: a web page that has
its answer goes on with its connection, and a client that leaves does not stop what it has started,
unless nobody else has a use for it. Then the work is dropped, and the lease is given back when the
consumer says that it has stopped.

Whoever leaves while the consumer is being asked leaves work of which nobody knows the id yet. So
the answer is waited for, as long as the whole request has been sent.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from enum import Enum, auto
from typing import Any

import aiohttp
import structlog
from aiohttp import hdrs, web
from multidict import CIMultiDict
from yarl import URL

from mgpu.api import forward, proxy
from mgpu.api import headers as fields
from mgpu.api.body import RequestBody
from mgpu.api.connection import client_left
from mgpu.api.deps import DEPS, Lease
from mgpu.api.results import Reply, Results, whole
from mgpu.api.routes import Upstream
from mgpu.broker.tasks import Tasks
from mgpu.consumers.completion import MAX_ANSWER_BYTES, Completion, Ending
from mgpu.errors import ConsumerFailed, MgpuError

ASK_GRACE_S = 10.0
"""How long the consumer may take to answer a client that has left."""
STOP_TIMEOUT_S = 30.0
"""How long work that ran out of time may take to stop, before the lease is given back anyway."""

_JSON = "application/json"
_SUCCESS = range(200, 300)

log = structlog.get_logger(__name__)


class Leaseholders(Tasks):
    """The tasks of all jobs of this kind."""

    closing = False

    async def close(self) -> None:
        """Let go of every lease. What consumers compute goes on: nobody has asked for its end."""
        self.closing = True
        await super().close()


LEASEHOLDERS = web.AppKey("leaseholders", Leaseholders)


async def end_leaseholders(app: web.Application) -> None:
    """Close an application's leaseholders, after its last request."""
    await app[LEASEHOLDERS].close()


class _Stage(Enum):
    WAITING = auto()
    ASKING = auto()
    ASKED = auto()
    """The whole request has been sent."""
    COMPUTING = auto()
    ANSWERING = auto()


class Leaseholder:
    """One such job. ``run`` it; its other methods are for the work that it runs.

    ``drop_when_left``: the work is of no use to anybody once the client has left.
    """

    def __init__(self, request: web.Request, upstream: Upstream, *, drop_when_left: bool) -> None:
        assert upstream.completion is not None  # noqa: S101  the caller has looked
        deps = request.app[DEPS]
        self._request = request
        self._upstream = upstream
        self._drop_when_left = drop_when_left
        self._session = deps.session
        self._completion = Completion(
            upstream.name,
            upstream.origin,
            upstream.completion,
            deps.session,
            headers=upstream.headers,
        )
        self._job = deps.broker.new_job_id()
        self._wanted = forward.lease_for(request, upstream, self._job)
        self._lease: Lease | None = None
        self._stage = _Stage.WAITING
        self._unwanted = asyncio.Event()
        self._outcome: asyncio.Future[web.StreamResponse] = (
            asyncio.get_running_loop().create_future()
        )
        self._task: asyncio.Task[None] | None = None
        self._asked_at = 0.0
        self.results = Results(request, upstream, self._added)
        """Makes answers of what came of the work."""

    async def run(self, work: Callable[[], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        """Do the work under the lease; return what it returns, or what it tells before that.

        Raises what the lease or the work raises. Being cancelled means that the client has left.
        """
        leaseholders = self._request.app[LEASEHOLDERS]
        self._task = leaseholders.spawn(f"job {self._job}", self._keep(work))
        try:
            return await self._outcome
        except asyncio.CancelledError:
            if client_left(self._request):
                log.info("client left", job=self._job, consumer=self._upstream.name)
            self._leave()
            raise

    async def ask(self, request: Awaitable[aiohttp.ClientResponse]) -> Reply:
        """Send one request for work, and take in the whole answer; raise ``ConsumerFailed``."""
        name = self._upstream.name
        self._asked_at = time.perf_counter()
        answer = await request
        try:
            body = await whole(answer, name, MAX_ANSWER_BYTES)
            headers = fields.towards_client(answer.headers)
            headers.popall(hdrs.CONTENT_LENGTH, None)
            return Reply(answer.status, answer.reason, headers, body)
        finally:
            answer.close()

    async def pass_on(self, url: URL, body: RequestBody) -> aiohttp.ClientResponse:
        """Send the client's own request on."""
        self._stage = _Stage.ASKING
        data = body.data
        return await proxy.ask(
            self._request,
            url,
            consumer=self._upstream.name,
            headers=self._headers(),
            data=self._sent(data) if isinstance(data, AsyncIterator) else self._all_sent(data),
        )

    async def send(self, url: URL, document: Any) -> aiohttp.ClientResponse:
        """Send a request of the broker's own making, unless nobody wants it any more."""
        if self._unwanted.is_set():
            raise asyncio.CancelledError("the client left")
        self._stage = _Stage.ASKED
        headers = {
            name: value
            for name, value in self._headers().items()
            if name in {hdrs.AUTHORIZATION, hdrs.ACCEPT_ENCODING}
        }
        try:
            return await self._session.post(
                url,
                data=json.dumps(document).encode(),
                headers={**headers, hdrs.CONTENT_TYPE: _JSON},
                allow_redirects=False,
            )
        except proxy.UPSTREAM_ERRORS as error:
            raise proxy.failed(self._upstream.name, error) from error

    async def completed(self, reply: Reply) -> Ending | None:
        """Wait until the work is over that a reply announces; None where it announces none.

        Raises ``ConsumerFailed`` when the consumer has died, and ``asyncio.CancelledError`` when
        the work was dropped because the client has left, or ran for longer than it may.
        """
        self._stage = _Stage.COMPUTING
        work = self._completion.work_in(reply.body) if reply.status in _SUCCESS else None
        if work is None:
            self._lease_held.failed = reply.status >= web.HTTPInternalServerError.status_code
            return None
        try:
            ending = await self._completion.ended(work, self._unwanted)
        except asyncio.CancelledError:
            await self._stop(work)
            raise
        if self._unwanted.is_set():
            raise asyncio.CancelledError("the client left")
        self._lease_held.failed = ending.failed
        return ending

    async def result(self, ending: Ending) -> web.StreamResponse:
        """Send the client what came of the work, or what the consumer says went wrong.

        Raises ``ConsumerFailed`` where it says nothing of that.
        """
        self._stage = _Stage.ANSWERING
        return await self.results.send(ending)

    async def file(self, path: str, max_bytes: int) -> tuple[str, bytes]:
        """One result, as its media type and its content; raise ``ConsumerFailed``."""
        self._stage = _Stage.ANSWERING
        return await self.results.file(path, max_bytes)

    def tell(self, response: web.StreamResponse) -> None:
        """Give the client this answer now, and go on."""
        if not self._outcome.done():
            self._outcome.set_result(response)

    async def _keep(self, work: Callable[[], Awaitable[web.StreamResponse]]) -> None:
        try:
            async with self._wanted as lease:
                self._lease = lease
                response = await work()
        except Exception as error:
            if self._outcome.done():
                log.warning(
                    "job failed after its answer",
                    job=self._job,
                    consumer=self._upstream.name,
                    error=error.detail if isinstance(error, MgpuError) else type(error).__name__,
                )
                if not isinstance(error, MgpuError):
                    raise
                return
            self._outcome.set_exception(error)
        except asyncio.CancelledError:
            self._outcome.cancel()
            raise
        else:
            self.tell(response)

    def _leave(self) -> None:
        """The client has gone: end what can be ended."""
        assert self._task is not None  # noqa: S101  it runs
        match self._stage:
            case _Stage.WAITING | _Stage.ASKING | _Stage.ANSWERING:
                self._task.cancel()
            case _Stage.ASKED:
                asyncio.get_running_loop().call_later(ASK_GRACE_S, self._give_up_asking)
        if self._drop_when_left:
            self._unwanted.set()

    def _give_up_asking(self) -> None:
        assert self._task is not None  # noqa: S101  it runs
        if self._stage is _Stage.ASKED:
            self._task.cancel()

    async def _stop(self, work: str) -> None:
        """Have the work dropped whose time is up, and wait until the consumer has."""
        if self._request.app[LEASEHOLDERS].closing:
            return
        self._unwanted.set()
        try:
            # Not asyncio.timeout: in a task that is being cancelled, early 3.11s take its end for
            # that cancellation.
            await asyncio.wait_for(self._completion.ended(work, self._unwanted), STOP_TIMEOUT_S)
        except (TimeoutError, ConsumerFailed) as error:
            log.warning(
                "work may go on", job=self._job, consumer=self._upstream.name, error=str(error)
            )

    async def _sent(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            yield chunk
        self._stage = _Stage.ASKED

    def _all_sent(self, data: bytes | None) -> bytes | None:
        self._stage = _Stage.ASKED
        return data

    def _headers(self) -> CIMultiDict[str]:
        keep = not self._request.app[DEPS].api_keys
        headers = fields.towards_consumer(
            self._request.headers, keep_authorization=keep, drop=self._upstream.drop_headers
        )
        headers[hdrs.ACCEPT_ENCODING] = "identity"  # the answer is read here
        return headers

    def _added(self) -> dict[str, str]:
        elapsed_s = time.perf_counter() - self._asked_at
        return dict(forward.added_headers(self._upstream.name, self._lease_held, elapsed_s))

    @property
    def _lease_held(self) -> Lease:
        assert self._lease is not None  # noqa: S101  work is only done under the lease
        return self._lease
