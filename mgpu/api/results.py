"""What a client is told when work that outlasted its answer is over: files, or what went wrong."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import hdrs, web
from multidict import CIMultiDict
from yarl import URL

from mgpu.api import headers as fields
from mgpu.api import proxy
from mgpu.api.deps import DEPS
from mgpu.api.guard import UNASKED
from mgpu.api.routes import Upstream
from mgpu.consumers.completion import Ending
from mgpu.errors import ConsumerFailed

_JSON = "application/json"
_MIB = 1 << 20
_SUCCESS = range(200, 300)


@dataclass(frozen=True, slots=True)
class Reply:
    """A consumer's answer to the request for work, whole."""

    status: int
    reason: str | None
    headers: CIMultiDict[str]
    body: bytes


class Results:
    """Makes the answers to one request; ``added`` gives the header fields that each one gets."""

    def __init__(
        self, request: web.Request, upstream: Upstream, added: Callable[[], Mapping[str, str]]
    ) -> None:
        self._request = request
        self._upstream = upstream
        self._added = added
        self._session = request.app[DEPS].session

    async def send(self, ending: Ending) -> web.StreamResponse:
        """Send the client what came of the work, or what the consumer says went wrong.

        Raises ``ConsumerFailed`` where it says nothing of that.
        """
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
            return answer.content_type, await whole(answer, self._upstream.name, max_bytes)
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

    async def _get(self, path: str) -> aiohttp.ClientResponse:
        name = self._upstream.name
        try:
            answer = await self._session.get(
                URL(self._upstream.origin + path, encoded=True),
                headers={hdrs.ACCEPT_ENCODING: "identity", **self._upstream.headers},
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

    def _json(self, body: bytes, *, status: int = 200) -> web.Response:
        return web.Response(
            status=status, body=body, content_type=_JSON, headers=dict(self._added())
        )


async def whole(answer: aiohttp.ClientResponse, name: str, max_bytes: int) -> bytes:
    """Read an answer to its end; raise ``ConsumerFailed`` where it breaks off or is longer."""
    received = bytearray()
    try:
        while chunk := await answer.content.readany():
            received += chunk
            if len(received) > max_bytes:
                raise ConsumerFailed(f"{name} answered with more than {max_bytes} bytes.")
    except proxy.UPSTREAM_ERRORS as error:
        raise proxy.failed(name, error) from error
    return bytes(received)


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
