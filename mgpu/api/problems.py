"""Errors as HTTP answers (RFC 9457): the only place where an error becomes a status code.

Below ``/v1`` the clients are OpenAI's and their kin. They look for a member ``error``, and try
again by themselves unless ``X-Should-Retry`` says not to, so there a problem has both besides.

An error that comes after the first byte of an answer cannot be told any more. Then the connection
is reset, so that nobody takes what was sent so far for the whole.
"""

from __future__ import annotations

import json
import math
import socket
import struct
from dataclasses import dataclass

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from mgpu import errors

OPENAI_PREFIX = "/v1/"
CONTENT_TYPE = "application/problem+json"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""struct linger, socket(7): on, no seconds."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    retry_after_s: float | None = None
    """When the error itself does not say and trying again can help."""


_ANSWERS = {
    "bad-request": _Answer(400),
    "unauthenticated": _Answer(401),
    "forbidden": _Answer(403),
    "unknown-route": _Answer(404),
    "unknown-model": _Answer(404),
    "unknown-consumer": _Answer(404),
    "unknown-job": _Answer(404),
    "method-not-allowed": _Answer(405),
    "request-timeout": _Answer(408),
    "cancelled": _Answer(409),
    "body-too-large": _Answer(413),
    "unsupported-media-type": _Answer(415),
    "expectation-failed": _Answer(417),
    "wrong-host": _Answer(421),
    "queue-full": _Answer(429, 1.0),
    "client-left": _Answer(499),
    "internal": _Answer(500),
    "bad-config": _Answer(500),
    "consumer-failed": _Answer(502, 1.0),
    "load-failed": _Answer(502, 1.0),
    "unload-failed": _Answer(502, 1.0),
    "vram-unavailable": _Answer(503, 5.0),
    "gpu-unhealthy": _Answer(503, 5.0),
    "consumer-cooldown": _Answer(503, 1.0),
    "paused": _Answer(503, 30.0),
    "draining": _Answer(503, 5.0),
    "wait-expired": _Answer(504, 1.0),
    "job-timeout": _Answer(504),
    "never-fits": _Answer(507),
    "storage-full": _Answer(507, 60.0),
}

_OF_STATUS = {
    400: "bad-request",
    401: "unauthenticated",
    403: "forbidden",
    404: "unknown-route",
    405: "method-not-allowed",
    408: "request-timeout",
    413: "body-too-large",
    415: "unsupported-media-type",
    417: "expectation-failed",
}
"""What the errors of aiohttp itself are called; any other is ``internal``."""

OF_JOB = web.RequestKey("of_job", dict[str, str])
"""Set on a request that is a job: the header fields that tell which, whatever comes of it."""

_BREAKS_FRAMING = frozenset({"body-too-large", "request-timeout"})
"""After these the rest of the request is of no use, so the connection ends."""


def problem(error: errors.MgpuError) -> web.Response:
    """The answer that tells an error to a client."""
    return _response(error.code, error.detail, error.retry_after_s)


def http_problem(error: web.HTTPException) -> web.Response:
    """The answer for an error that aiohttp raised by itself."""
    code = _OF_STATUS.get(error.status, "internal")
    response = _response(code, f"{error.reason}.")
    if hdrs.ALLOW in error.headers:
        response.headers[hdrs.ALLOW] = error.headers[hdrs.ALLOW]
    return response


def malformed() -> web.Response:
    """The answer to what is not HTTP. It quotes nothing: what was sent may hold a key."""
    response = _response("bad-request", "The request is not valid HTTP.")
    response.force_close()
    return response


def internal() -> web.Response:
    """The answer when the broker has a bug: the log knows more."""
    response = _response("internal", "The broker failed; its log says why.")
    response.force_close()
    return response


def _title(code: str) -> str:
    first, *rest = code.split("-")
    return " ".join([first.upper() if first in {"gpu", "vram"} else first.capitalize(), *rest])


def _response(code: str, detail: str, retry_after_s: float | None = None) -> web.Response:
    answer = _ANSWERS[code]
    body = {
        "type": f"urn:mgpu:{code}",
        "title": _title(code),
        "status": answer.status,
        "detail": detail,
    }
    response = web.Response(
        status=answer.status,
        body=json.dumps(body).encode(),
        content_type=CONTENT_TYPE,
    )
    wait_s = answer.retry_after_s if retry_after_s is None else retry_after_s
    if wait_s is not None:
        response.headers[hdrs.RETRY_AFTER] = str(max(1, math.ceil(wait_s)))
    if code == "unauthenticated":
        response.headers.add(hdrs.WWW_AUTHENTICATE, 'Bearer realm="mgpu"')
        response.headers.add(hdrs.WWW_AUTHENTICATE, 'Basic realm="mgpu", charset="UTF-8"')
    if code in _BREAKS_FRAMING:
        response.force_close()
    return response


def _for_openai(answer: web.Response) -> None:
    """Add what clients of OpenAI's interface look for."""
    body = json.loads(answer.body)  # type: ignore[arg-type]  # it is bytes, made above
    error = {"message": body["detail"], "type": body["type"], "code": body["type"], "param": None}
    answer.body = json.dumps({**body, "error": error}).encode()
    answer.headers["X-Should-Retry"] = str(hdrs.RETRY_AFTER in answer.headers).lower()


@web.middleware
async def problems_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error as a problem, or break the connection when it is too late for that."""
    try:
        return await handler(request)
    except errors.MgpuError as error:
        code, answer = error.code, problem(error)
        if code == errors.MgpuError.code:
            log.exception("request failed")
            answer = internal()
    except web.HTTPException as error:
        if error.status < 400:  # noqa: PLR2004  redirects are answers, not errors
            raise
        code, answer = _OF_STATUS.get(error.status, "internal"), http_problem(error)
    answer.headers.update(request.get(OF_JOB, {}))
    if request.path.startswith(OPENAI_PREFIX):
        _for_openai(answer)
    if request.writer.output_size > 0:
        log.warning("answer broken off", code=code)
        reset(request)
    return answer


def reset(request: web.BaseRequest) -> None:
    """Break the client's connection visibly: not even an answer without framing ends cleanly."""
    transport = request.transport
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()
