"""Which header fields cross the broker: all that are meant for the other end, in their order.

RFC 9110, 7.6.1: fields about one connection stay with it, those that ``Connection`` names too.
Towards a consumer more is left out: what only the broker needs (its key, its own fields), and what
a browser says about the page it shows, since ComfyUI refuses an ``Origin`` that is not its own.
``Cookie`` and ``Set-Cookie`` pass; the broker keeps none.

On a consumer's own port the broker is what is called a reverse proxy: the consumer is told by which
name it was reached, and what it says of its own address is made to lead to that port.
"""

from __future__ import annotations

from aiohttp import hdrs, web
from multidict import CIMultiDict, CIMultiDictProxy

PRIORITY = "X-MGPU-Priority"
MAX_WAIT = "X-MGPU-Max-Wait"
IDLE_UNLOAD = "X-MGPU-Idle-Unload"
ANSWER = "X-MGPU-Answer"
JOB = "X-MGPU-Job"
CONSUMER = "X-MGPU-Consumer"
SERVER_TIMING = "Server-Timing"
OF_A_JOB = (JOB, CONSUMER, SERVER_TIMING)

_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_NOT_TO_CONSUMER = _HOP_BY_HOP | {
    # The broker frames the body and names the host anew, and has answered Expect itself.
    "content-length",
    "expect",
    "host",
    "origin",
    "sec-fetch-dest",
    "sec-fetch-mode",
    "sec-fetch-site",
    "sec-fetch-storage-access",
    "sec-fetch-user",
    PRIORITY.lower(),
    MAX_WAIT.lower(),
    IDLE_UNLOAD.lower(),
    ANSWER.lower(),
}
_NOT_TO_CLIENT = _HOP_BY_HOP | {JOB.lower(), CONSUMER.lower()}

Headers = CIMultiDict[str] | CIMultiDictProxy[str]


def tokens(headers: Headers, name: str) -> frozenset[str]:
    """The comma-separated words of a field, in lower case."""
    values = headers.getall(name, ())
    return frozenset(word.strip().lower() for value in values for word in value.split(","))


def towards_consumer(
    headers: Headers, *, keep_authorization: bool, drop: frozenset[str] = frozenset()
) -> CIMultiDict[str]:
    """A client's fields as the consumer gets them, without those in ``drop`` (in lower case)."""
    left_out = _NOT_TO_CONSUMER | drop
    if not keep_authorization:
        left_out |= {"authorization"}
    return _without(headers, left_out)


def towards_client(headers: Headers) -> CIMultiDict[str]:
    """A consumer's fields as the client gets them."""
    passed = _without(headers, _NOT_TO_CLIENT)
    if hdrs.TRANSFER_ENCODING in headers:
        passed.popall(hdrs.CONTENT_LENGTH, None)  # RFC 9112, 6.3: the encoding wins
    return passed


def add_forwarded(headers: CIMultiDict[str], request: web.Request) -> None:
    """Tell the consumer how it was reached, unless a proxy before the broker has done so."""
    headers.setdefault(hdrs.X_FORWARDED_HOST, request.headers[hdrs.HOST])
    headers.setdefault(hdrs.X_FORWARDED_PROTO, request.scheme)
    if request.remote:
        headers.setdefault(hdrs.X_FORWARDED_FOR, request.remote)


def stay_on_port(headers: CIMultiDict[str], origin: str) -> None:
    """Take the consumer's origin out of where it sends the client; the path alone stays."""
    for name in (hdrs.LOCATION, hdrs.CONTENT_LOCATION):
        place = headers.get(name, "")
        rest = place[len(origin) :]
        if place.lower().startswith(origin) and rest[:1] in {"", "/", "?", "#"}:
            headers[name] = rest if rest.startswith("/") else f"/{rest}"


def _without(headers: Headers, left_out: frozenset[str]) -> CIMultiDict[str]:
    if hdrs.CONNECTION in headers:
        left_out |= tokens(headers, hdrs.CONNECTION)
    return CIMultiDict(
        [
            (name, value if value.isascii() else _writable(value))
            for name, value in headers.items()
            if name.lower() not in left_out
        ]
    )


def _writable(value: str) -> str:
    """The same text so that aiohttp can write it.

    It reads UTF-8, keeps what is none as surrogates, and leaves these out when it writes: a name in
    ISO 8859-1 would lose its letters. Such a value is taken for what it is then (RFC 9110, 5.5).
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode(errors="surrogateescape").decode("iso-8859-1")
    return value
