"""Jobs whose work goes on after the consumer has answered: the lease stands until it is over.

A task of its own, the keeper, holds the lease, since it may have to outlive the request: a web
page that has its answer goes on with its connection, and a client that leaves does not stop what
it has started. In the first shape, ``answered_at_once``, the client gets the consumer's own answer
and nothing that it does later ends the job. In the second, ``answered_with_result``, it waits for
what comes of the work, so a client that leaves has the work dropped; the lease is given back when
the consumer says that it has stopped.

Whoever leaves while the consumer is being asked leaves work of which nobody knows the id yet. So
the answer is waited for, as long as the whole request has been sent.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
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
from mgpu.api.guard import UNASKED
from mgpu.api.routes import Upstream
from mgpu.broker.tasks import Tasks
from mgpu.config.workflow import Workflow
from mgpu.consumers.completion import MAX_ANSWER_BYTES, Completion, Ending
from mgpu.errors import BadRequest, BodyTooLarge, ConsumerFailed, MgpuError

MAX_SIMPLE_BODY_BYTES = 8 << 20
"""Of a request that is read here, and held while its job waits."""
ASK_GRACE_S = 10.0
"""How long the consumer may take to answer a client that has left."""
STOP_TIMEOUT_S = 30.0
"""How long work that ran out of time may take to stop, before the lease is given back anyway."""

_JSON = "application/json"
_MIB = 1 << 20
_SUCCESS = range(200, 300)

log = structlog.get_logger(__name__)


async def answered_at_once(
    request: web.Request, upstream: Upstream, url: URL
) -> web.StreamResponse:
    """Pass the consumer's own answer on; the job ends when its work does."""
    upstream.check_allowed(request.method, url.path)
    keeper = Keeper(request, upstream, drop_when_left=False)

    async with forward.receive(request) as body:

        async def work() -> web.StreamResponse:
            reply = await keeper.ask(keeper.pass_on(url, body))
            response = keeper.response(reply)
            keeper.tell(response)
            await keeper.completed(reply)
            return response

        response = await keeper.run(work)
    await proxy.start(request, response, upstream.name)
    return response


async def answered_with_result(
    request: web.Request, upstream: Upstream, url: URL, workflow: Workflow | None
) -> web.StreamResponse:
    """Answer with what came of the work: its first file, or all of them when JSON is asked for.

    With a ``workflow``, a body whose ``prompt`` is not a workflow itself is filled into that one.
    """
    upstream.check_allowed(request.method, url.path)
    keeper = Keeper(request, upstream, drop_when_left=True)

    async def work(asked: Awaitable[aiohttp.ClientResponse]) -> web.StreamResponse:
        reply = await keeper.ask(asked)
        ending = await keeper.completed(reply)
        return keeper.response(reply) if ending is None else await keeper.result(ending)

    async with forward.receive(request) as body:
        if workflow is None:
            return await keeper.run(lambda: work(keeper.pass_on(url, body)))
        document = await json_object(body)
        if not isinstance(document.get("prompt"), dict):
            document = {"prompt": workflow.filled(document)}
        return await keeper.run(lambda: work(keeper.send(url, document)))


async def json_object(body: RequestBody) -> dict[str, Any]:
    """Take in a whole body that must be a JSON object of 8 MiB at most; raise ``RequestError``."""
    received = bytearray()
    async for chunk in _chunks(body):
        received += chunk
        if len(received) > MAX_SIMPLE_BODY_BYTES:
            raise BodyTooLarge(f"The body must have {MAX_SIMPLE_BODY_BYTES} bytes at most.")
    try:
        document = json.loads(received, parse_constant=_not_json)
    except (ValueError, RecursionError) as error:
        raise BadRequest("The body must be JSON.") from error
    if not isinstance(document, dict):
        raise BadRequest("The body must be a JSON object.")
    return document


class Keepers(Tasks):
    """The tasks of all jobs of this kind."""

    closing = False

    async def close(self) -> None:
        """Let go of every lease. What consumers compute goes on: nobody has asked for its end."""
        self.closing = True
        await super().close()


KEEPERS = web.AppKey("keepers", Keepers)


async def end_keepers(app: web.Application) -> None:
    """Close an application's keepers, after its last request."""
    await app[KEEPERS].close()


@dataclass(frozen=True, slots=True)
class Reply:
    """A consumer's answer to the request for work, whole."""

    status: int
    reason: str | None
    headers: CIMultiDict[str]
    body: bytes


class _Stage(Enum):
    WAITING = auto()
    ASKING = auto()
    ASKED = auto()
    """The whole request has been sent."""
    COMPUTING = auto()
    ANSWERING = auto()


class Keeper:
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
            upstream.name, upstream.origin, upstream.completion, deps.session
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

    async def run(self, work: Callable[[], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        """Do the work under the lease; return what it returns, or what it tells before that.

        Raises what the lease or the work raises. Being cancelled means that the client has left.
        """
        keepers = self._request.app[KEEPERS]
        self._task = keepers.spawn(f"job {self._job}", self._keep(work))
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
            body = await _whole(answer, name, MAX_ANSWER_BYTES)
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
        if ending.failed:
            return self.failure(ending)
        if not ending.files:
            return self._json(ending.answer)
        if _only_json(self._request):
            return self._json(await self._listing(ending))
        answer = await self._get(ending.files[0])
        try:
            return await proxy.relay(
                self._request, answer, consumer=self._upstream.name, headers=self._added()
            )
        finally:
            answer.close()

    def failure(self, ending: Ending) -> web.StreamResponse:
        """The consumer's own error, as a 500; raises ``ConsumerFailed`` where it gave none."""
        name = self._upstream.name
        if ending.dropped:
            raise ConsumerFailed(f"{name} dropped the work before it was done.")
        if ending.error is None:
            raise ConsumerFailed(f"{name} failed at the work and did not say why.")
        status = web.HTTPInternalServerError.status_code
        return self._json(json.dumps(ending.error).encode(), status=status)

    async def file(self, path: str, max_bytes: int) -> tuple[str, bytes]:
        """One result, as its media type and its content; raise ``ConsumerFailed``."""
        answer = await self._get(path)
        try:
            return answer.content_type, await _whole(answer, self._upstream.name, max_bytes)
        finally:
            answer.close()

    def response(self, reply: Reply) -> web.Response:
        """The consumer's own answer, to be sent to the client."""
        headers = reply.headers.copy()
        headers.extend(self._added())
        return _bare(
            web.Response(
                status=reply.status, reason=reply.reason, headers=headers, body=reply.body or None
            )
        )

    def json(self, document: Any) -> web.Response:
        """An answer of the broker's own making."""
        return self._json(json.dumps(document).encode())

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
        if self._request.app[KEEPERS].closing:
            return
        self._unwanted.set()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._completion.ended(work, self._unwanted)
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

    async def _get(self, path: str) -> aiohttp.ClientResponse:
        self._stage = _Stage.ANSWERING
        name = self._upstream.name
        try:
            answer = await self._session.get(
                URL(self._upstream.origin + path, encoded=True),
                headers={hdrs.ACCEPT_ENCODING: "identity"},
                allow_redirects=False,
                read_bufsize=proxy.READ_BUFSIZE_BYTES,
            )
        except proxy.UPSTREAM_ERRORS as error:
            raise proxy.failed(name, error) from error
        if answer.status not in _SUCCESS:
            answer.close()
            raise ConsumerFailed(f"{name} answered {answer.status} when asked for the result.")
        return answer

    async def _listing(self, ending: Ending) -> bytes:
        """Every file in one JSON document, their contents in base64."""
        left_bytes = self._request.app[DEPS].config.server.max_body_mib * _MIB
        listed = []
        for path, about in zip(ending.files or (), ending.listing, strict=True):
            media_type, content = await self.file(path, left_bytes)
            left_bytes -= len(content)
            data = base64.b64encode(content).decode()
            listed.append({**about, "media_type": media_type, "b64_json": data})
        return json.dumps({"id": ending.work, "files": listed}).encode()

    def _headers(self) -> CIMultiDict[str]:
        keep = not self._request.app[DEPS].api_keys
        headers = fields.towards_consumer(self._request.headers, keep_authorization=keep)
        headers[hdrs.ACCEPT_ENCODING] = "identity"  # the answer is read here
        return headers

    def _json(self, body: bytes, *, status: int = 200) -> web.Response:
        return web.Response(
            status=status, body=body, content_type=_JSON, headers=dict(self._added())
        )

    def _added(self) -> dict[str, str]:
        elapsed_s = time.perf_counter() - self._asked_at
        return dict(forward.added_headers(self._upstream.name, self._lease_held, elapsed_s))

    @property
    def _lease_held(self) -> Lease:
        assert self._lease is not None  # noqa: S101  work is only done under the lease
        return self._lease


async def _whole(answer: aiohttp.ClientResponse, name: str, max_bytes: int) -> bytes:
    received = bytearray()
    try:
        while chunk := await answer.content.readany():
            received += chunk
            if len(received) > max_bytes:
                raise ConsumerFailed(f"{name} answered with more than {max_bytes} bytes.")
    except proxy.UPSTREAM_ERRORS as error:
        raise proxy.failed(name, error) from error
    return bytes(received)


async def _chunks(body: RequestBody) -> AsyncIterator[bytes]:
    if isinstance(body.data, bytes):
        yield body.data
    elif body.data is not None:
        async for chunk in body.data:
            yield chunk


def _bare(response: web.Response) -> web.Response:
    """Keep aiohttp from adding what the consumer did not say."""
    response[UNASKED] = tuple(
        name for name in (hdrs.SERVER, hdrs.CONTENT_TYPE) if name not in response.headers
    )
    return response


def _only_json(request: web.Request) -> bool:
    """Whether the client takes JSON and no file."""
    accepted = {
        word.partition(";")[0].strip() for word in fields.tokens(request.headers, hdrs.ACCEPT)
    }
    return _JSON in accepted and not any(
        each == "*/*" or each.startswith(("image/", "audio/", "video/")) for each in accepted
    )


def _not_json(constant: str) -> None:
    raise ValueError(constant)
