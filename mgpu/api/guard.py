"""Who may ask anything at all: checked on every route before a handler sees the request.

Allow-lists only. A page that has been told that its own name is 127.0.0.1 (DNS rebinding) fails
at ``Host``; a page of another site, or of another port of this machine, fails at ``Origin`` or
``Sec-Fetch-Site``; a program without a key fails at ``Authorization``, which may be ``Bearer`` or,
for browsers, ``Basic`` with the key as password. Only ``/healthz`` and ``/readyz`` answer without
a key. ``Host`` is compared without its port and exactly otherwise:
``localhost.`` is another name.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable

from aiohttp import hdrs, web
from aiohttp.http import HttpVersion10, HttpVersion11
from aiohttp.typedefs import Handler, Middleware

from mgpu.api import headers as fields
from mgpu.api.deps import Deps
from mgpu.api.paths import read_target
from mgpu.api.routes import TARGET
from mgpu.errors import BadRequest, Forbidden, Unauthenticated, WrongHost

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OPEN_PATHS = frozenset({"/healthz", "/readyz"})

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::[0-9]{1,5})?")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_SAME_SITE_ENOUGH = frozenset({"same-origin", "none"})

_EXPOSED = ", ".join([*fields.OF_A_JOB, hdrs.RETRY_AFTER, hdrs.LOCATION])
_UNASKED_OF_OURS: tuple[str, ...] = (hdrs.SERVER,)

UNASKED = web.ResponseKey("unasked", tuple[str, ...])
"""Set on an answer: the fields that aiohttp adds and that shall not be there."""
ORIGIN = web.RequestKey("origin", str)
"""Set when the request comes from a page of ``server.allowed_origins``."""


def make_guard(deps: Deps, *, own_port: bool = False) -> Middleware:
    """Make the middleware for this configuration.

    ``own_port``: for a port where every path is a consumer's own. There a link of another site may
    be followed, as with any server that people open in a browser.
    """
    open_paths = frozenset[str]() if own_port else OPEN_PATHS
    server = deps.config.server
    allowed_hosts = frozenset(map(_name_of, server.allowed_hosts))
    allowed_origins = frozenset(origin.rstrip("/").lower() for origin in server.allowed_origins)
    keys = Keys(deps.api_keys)

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = _check_host(request, allowed_hosts)
        _check_framing(request)
        preflight = _check_origin(request, host, allowed_origins, links=own_port)
        if request.method not in METHODS:
            raise web.HTTPMethodNotAllowed(request.method, METHODS)
        if preflight is not None:
            return preflight
        if keys and request.raw_path not in open_paths:
            keys.check(request.headers.getall(hdrs.AUTHORIZATION, ()))
        request[TARGET] = read_target(request.raw_path, own_port=own_port)
        return await handler(request)

    return guard


class Keys:
    """The API keys. Every one is compared, in constant time, whatever the first ones gave."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(_digest(key) for key in keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, authorization: Iterable[str]) -> None:
        """Raise ``errors.Unauthenticated`` unless the one field holds a key, by a known scheme."""
        values = tuple(authorization)
        scheme, _, given = values[0].partition(" ") if len(values) == 1 else ("", "", "")
        if scheme.lower() == "basic":
            scheme, given = "bearer", _password(given)
        digest = _digest(given.strip())
        matches = sum(hmac.compare_digest(digest, known) for known in self._digests)
        if not matches or scheme.lower() != "bearer":
            raise Unauthenticated("This needs an API key: Authorization: Bearer KEY.")


def _password(credentials: str) -> str:
    """The password of RFC 7617, whoever the user is said to be."""
    try:
        return base64.b64decode(credentials.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _digest(key: str) -> bytes:
    # Of one length, so that the comparison does not tell the length of a key either.
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def _check_host(request: web.Request, allowed: frozenset[str]) -> str:
    values = request.headers.getall(hdrs.HOST, [])
    if len(values) != 1:
        raise BadRequest("The request must have exactly one Host header.")
    found = _HOST.fullmatch(values[0])
    if found is None:
        raise BadRequest("The Host header must be a name or an address, and a port.")
    if found[1].lower() not in allowed:
        raise WrongHost
    return values[0].lower()


def _name_of(allowed: str) -> str:
    name = f"[{allowed}]" if allowed.count(":") > 1 and not allowed.startswith("[") else allowed
    found = _HOST.fullmatch(name)
    return found[1].lower() if found else name.lower()


def _check_framing(request: web.Request) -> None:
    """Refuse what two servers might frame differently; aiohttp lets some of it through."""
    if request.version not in {HttpVersion10, HttpVersion11}:
        raise BadRequest("Only HTTP/1.0 and HTTP/1.1 are spoken here.")
    encodings = request.headers.getall(hdrs.TRANSFER_ENCODING, [])
    if not encodings:
        return
    if request.version == HttpVersion10 or hdrs.CONTENT_LENGTH in request.headers:
        raise BadRequest("Transfer-Encoding is for HTTP/1.1 alone, without a Content-Length.")
    if len(encodings) != 1 or encodings[0].lower() != "chunked":
        raise BadRequest("The only Transfer-Encoding is chunked.")


def _check_origin(
    request: web.Request, host: str, allowed: frozenset[str], *, links: bool
) -> web.StreamResponse | None:
    """Refuse pages from elsewhere; the answer when one that is allowed only asks whether it is."""
    origins = request.headers.getall(hdrs.ORIGIN, [])
    if len(origins) > 1:
        raise BadRequest("The request has more than one Origin header.")
    origin = origins[0].lower() if origins else ""
    if origin in allowed:
        request[ORIGIN] = origins[0]
        if request.method == "OPTIONS" and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
            return _preflight(request)
        return None
    if origin and not _is_own(origin, host):
        raise Forbidden("Pages of this origin may not use the broker: see server.allowed_origins.")
    site = request.headers.get("Sec-Fetch-Site", "none").lower()
    if site not in _SAME_SITE_ENOUGH and not (links and _is_followed_link(request)):
        raise Forbidden("Pages of other sites may not use the broker: see server.allowed_origins.")
    return None


def _is_followed_link(request: web.Request) -> bool:
    """Whether a person goes to this page, which then is all there is to see in its tab."""
    return (
        request.method == "GET"
        and request.headers.get("Sec-Fetch-Mode", "").lower() == "navigate"
        and request.headers.get("Sec-Fetch-Dest", "").lower() == "document"
        and hdrs.ORIGIN not in request.headers
    )


def _is_own(origin: str, host: str) -> bool:
    scheme, _, authority = origin.partition("://")
    default_port = _DEFAULT_PORTS.get(scheme)
    if default_port is None:
        return False
    return authority.removesuffix(default_port) == host.removesuffix(default_port)


def _preflight(request: web.Request) -> web.Response:
    # A preflight carries no key: it is answered before the key is looked for.
    asked = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS)
    response = web.Response(status=204)
    response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = ", ".join(sorted(METHODS))
    response.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = "600"
    if asked is not None:
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = asked
    return response


async def finish_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Take out what aiohttp put in unasked, and let an allowed page read the answer.

    For ``Application.on_response_prepare``.
    """
    for name in response.get(UNASKED, _UNASKED_OF_OURS):
        response.headers.popall(name, None)
    origin = request.get(ORIGIN)
    if origin is None:
        return
    response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
    response.headers.add(hdrs.VARY, hdrs.ORIGIN)
    response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED
