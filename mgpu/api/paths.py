"""Request paths: read once, strictly, so that the broker and a consumer never read one differently.

What decides a route is the list of decoded segments. A path that two programs might resolve to
two things is refused, not repaired: dot segments in any spelling, empty segments, encoded slashes
and backslashes, control characters, half percent-escapes. What goes on to a consumer is the path
as it was sent.

An encoded slash is allowed where it decides no route: in what is a consumer's own, below
``/consumers/NAME`` and on a port of its own, since ComfyUI names a file in a folder by one; and in
the name of a model below ``/v1/models``. To be compared it counts as a slash, so that it hides
neither a dot segment nor an empty one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from mgpu.errors import BadRequest

_TARGET = re.compile(r"(/[!-\"$->@-~]*)(?:\?([!-\"$-~]*))?")
"""A path and a query of visible ASCII without ``#`` (RFC 9112, 3.2.1)."""
_PLAIN = re.compile(r"(?:/(?!\.)[A-Za-z0-9_~.-]+)*/?")
"""Nothing in here can mean anything but itself; the usual case, decided in one step."""
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_AMBIGUOUS = re.compile(rb"[\x00-\x1f\x7f\\]")
_DECIDING = 2
"""Segments that decide the route in ``/consumers/NAME/…`` and ``/v1/models/…``."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes: its path's segments, decoded and as sent, and its raw query.

    A path that ends with a slash has an empty last segment.
    """

    segments: tuple[str, ...]
    raw: tuple[str, ...]
    query: str

    def raw_below(self, depth: int) -> str:
        """The path as sent without its first segments; empty when there is nothing below them."""
        return "".join(f"/{segment}" for segment in self.raw[depth:])

    def below(self, depth: int) -> str:
        """The same, decoded: what to compare."""
        return "".join(f"/{segment}" for segment in self.segments[depth:])


def read_target(target: str, *, own_port: bool = False) -> Target:
    """Read a request's target as sent; raise ``errors.BadRequest`` unless it means one thing.

    ``own_port``: it came to a port where every path is a consumer's own.
    """
    found = _TARGET.fullmatch(target)
    if found is None:
        raise BadRequest("The request's target must be a path: /… in ASCII, with escapes.")
    path, query = found[1], found[2] or ""
    raw = tuple(path[1:].split("/"))
    if _PLAIN.fullmatch(path):
        return Target(raw, raw, query)
    deciding = 0 if own_port else _DECIDING if _is_open_below(raw) else len(raw)
    segments = tuple(_decoded(each, slashes=n >= deciding) for n, each in enumerate(raw))
    if "//" in f"/{'/'.join(segments)}":
        raise BadRequest("The path holds two slashes in a row.")
    return Target(segments, raw, query)


def _is_open_below(raw: tuple[str, ...]) -> bool:
    first = tuple(map(_decoded, raw[:_DECIDING]))
    return first[0] == "consumers" or first == ("v1", "models")


def _decoded(segment: str, *, slashes: bool = False) -> str:
    """A segment without its escapes; ``slashes``: there may be some among them."""
    if _BAD_ESCAPE.search(segment):
        raise BadRequest("The path holds a % that begins no escape.")
    decoded = unquote_to_bytes(segment)
    if _AMBIGUOUS.search(decoded):
        raise BadRequest("The path holds a backslash or a control character.")
    parts = decoded.split(b"/")
    if len(parts) > 1 and not slashes:
        raise BadRequest("The path holds an encoded slash.")
    # Some servers cut parameters off before they resolve dots: /a/..;x/b
    if any(part.partition(b";")[0] in {b".", b".."} for part in parts):
        raise BadRequest("The path holds a dot segment.")
    return decoded.decode(errors="surrogateescape")
