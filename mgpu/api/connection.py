"""One client's connection: what happens outside of the application's handlers.

aiohttp's connection is used with a few additions: requests that are not HTTP and bugs are answered
as problems, a body whose framing breaks half-way is told to the handler that reads it, and it is
known whether a connection was ended by its client or by the server that closes. Three of aiohttp's
private attributes are read for that; the tests notice when one of them changes.
"""

from __future__ import annotations

import structlog
from aiohttp import web
from aiohttp.http import HttpProcessingError, RawRequestMessage

from mgpu.api import problems

log = structlog.get_logger(__name__)


class Connection(web.RequestHandler):
    """aiohttp's, with what is said above."""

    shutting_down = False

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109  aiohttp's
        """End this connection because the server closes."""
        self.shutting_down = True
        await super().shutdown(timeout)

    def eof_received(self) -> None:
        """The client has ended its half: while a request is under way it has left.

        Closing would first wait until it has taken what there is for it, which it never may.
        """
        if self._current_request is not None and self.transport is not None:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Tell the running handler too when the rest of its body is not framed right."""
        super().data_received(data)
        if self._current_request is None or not self._messages:
            return
        if self._current_request.content.is_eof():
            return  # what is wrong is the next request
        if not isinstance(self._messages[-1][0], RawRequestMessage):
            self._current_request._cancel(  # noqa: SLF001  aiohttp has no other way to say it
                web.RequestPayloadError("the body's framing is broken")
            )

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  quotes what was sent
    ) -> web.StreamResponse:
        """Answer what is not HTTP, and bugs, as problems; a bug is logged whole."""
        if isinstance(exc, HttpProcessingError):
            log.info("request is not HTTP", error=type(exc).__name__)
            answer = problems.malformed()
        else:
            log.error("handler broke", status=status, exc_info=exc)
            answer = problems.internal()
        if request.writer.output_size > 0:
            problems.reset(request)
        return answer


def client_left(request: web.BaseRequest) -> bool:
    """Whether the request's connection is gone and this server has not ended it."""
    transport = request.transport
    if transport is not None and not transport.is_closing():
        return False
    return not (isinstance(request.protocol, Connection) and request.protocol.shutting_down)
