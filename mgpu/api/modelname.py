"""The ``model`` that a request for OpenAI's routes names, read off while its body passes by.

The body itself is neither held nor decoded nor changed: a finder is shown each piece as it comes,
and keeps no more than a name. JSON is followed only as far as it takes to tell the members of the
outermost object from everything inside, and a form by its parts' heads (RFC 7578). A model that is
named twice is refused, since the broker and a consumer may not take the same one of the two.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Protocol

from aiohttp import hdrs, web
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from mgpu.errors import BadRequest, UnsupportedMediaType

MAX_NAME_BYTES = 1024
MAX_DEPTH = 1000
"""Of JSON; Python's own reader goes no deeper."""
_FIELD = "model"

_BLANK = re.compile(rb"[ \t\r\n]*+")
# None of a group is possessive: before Python 3.11.5 such a one loses its place (gh-106052).
_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*', re.DOTALL)
"""Up to the quote that ends a string, to a backslash that is the last byte here, or to the end."""
_AT_THE_TOP = re.compile(rb'[^"{}\[\]:,]*+')
_DEEPER = re.compile(rb'(?:[^"{}\[\]]++|"[^"\\]{0,200}+")*')
"""Up to a bracket, to a string that is long or has escapes, or to the end."""


class _Parser(Protocol):
    def feed(self, piece: bytes) -> None: ...
    def end(self) -> None: ...


class ModelFinder:
    """Is shown a body piece by piece, and says which model it names.

    What is no form is taken for JSON, whatever its Content-Type says: curl calls all that it sends
    a form. Raises ``errors.UnsupportedMediaType`` for a body that is compressed, and for one that
    is no JSON and does not say that it is.
    """

    def __init__(self, request: web.Request) -> None:
        if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
            raise UnsupportedMediaType("The model of a compressed body cannot be read.")
        self._name = ""
        self._named = asyncio.Event()
        declared = hdrs.CONTENT_TYPE not in request.headers or "json" in request.content_type
        self._parser: _Parser = _InJson(self._tell, declared=declared)
        if request.content_type == "multipart/form-data":
            _, options = parse_options_header(request.headers[hdrs.CONTENT_TYPE])
            self._parser = _InForm(options.get(b"boundary", b""), self._tell)

    @property
    def satisfied(self) -> bool:
        """Whether the model has been named."""
        return self._named.is_set()

    async def name(self) -> str:
        """Return when the body has named its model."""
        await self._named.wait()
        return self._name

    def feed(self, piece: bytes) -> None:
        """Look at the next piece, an empty one at the end; raise ``errors.BadRequest``."""
        if piece:
            self._parser.feed(piece)
            return
        self._parser.end()
        if not self.satisfied:
            raise BadRequest("The request names no model.")

    def _tell(self, raw: bytes) -> None:
        """A model was named: ``raw`` is UTF-8."""
        if self.satisfied:
            raise BadRequest("The request names its model more than once.")
        try:
            self._name = raw.decode()
        except UnicodeDecodeError as error:
            raise BadRequest("The name of the model is not UTF-8.") from error
        if not self._name:
            raise BadRequest("The name of the model is empty.")
        self._named.set()


class _InJson:
    """Finds the member ``model`` of a JSON object (RFC 8259).

    ``declared``: nothing that the request says speaks against JSON.
    """

    def __init__(self, tell: Callable[[bytes], None], *, declared: bool) -> None:
        self._tell = tell
        self._declared = declared
        self._depth = 0
        self._over = False
        self._in_string = False
        self._is_key = False
        self._of_model = False
        """Whether the value that is read belongs to ``model``."""
        self._held: bytearray | None = None
        """What is kept of the string that is read."""
        self._cut = b""
        """A backslash at the end of the piece before."""

    def feed(self, piece: bytes) -> None:
        data, self._cut, at = self._cut + piece, b"", 0
        while at < len(data):
            if self._in_string:
                at = self._string(data, at)
            elif self._depth == 0:
                at = self._outside(data, at)
            else:
                between = _AT_THE_TOP if self._depth == 1 else _DEEPER
                end = between.match(data, at).end()  # type: ignore[union-attr]  # may be empty
                if end < len(data):
                    self._mark(data[end : end + 1])
                at = end + 1

    def end(self) -> None:
        """There was the last one."""
        if not self._over:
            raise BadRequest("The body is not a JSON object.")

    def _outside(self, data: bytes, at: int) -> int:
        """Before the object and after it there are only blanks."""
        at = _BLANK.match(data, at).end()  # type: ignore[union-attr]  # may be empty
        if at == len(data):
            return at
        if self._over or data[at : at + 1] != b"{":
            if self._declared or self._over:
                raise BadRequest("The body is not a JSON object.")
            raise UnsupportedMediaType("The body must be a JSON object or multipart/form-data.")
        self._depth, self._is_key = 1, True
        return at + 1

    def _mark(self, mark: bytes) -> None:
        """One of the characters that JSON is made of, outside of strings."""
        top = self._depth == 1
        if mark == b'"':
            self._in_string = True
            self._held = bytearray() if top and (self._is_key or self._of_model) else None
            return
        if top and self._of_model and mark != b":":
            raise BadRequest("The model must be a text.")
        if mark in b"{[":
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise BadRequest(f"The body is nested more than {MAX_DEPTH} levels deep.")
        elif mark in b"}]":
            self._depth -= 1
            self._over = self._depth == 0
        else:
            self._is_key = mark == b","

    def _string(self, data: bytes, at: int) -> int:
        quote = data.find(b'"', at)
        end = len(data) if quote < 0 else quote
        if data.find(b"\\", at, end) >= 0:
            end = _IN_STRING.match(data, at).end()  # type: ignore[union-attr]  # may be empty
        if self._held is not None:
            self._held += data[at : min(end, at + MAX_NAME_BYTES + 1)]
            if len(self._held) > MAX_NAME_BYTES:
                self._too_long()
        if data[end : end + 1] == b"\\":
            self._cut = b"\\"
        elif end < len(data):
            self._string_over()
        return end + 1

    def _too_long(self) -> None:
        if self._of_model:
            raise BadRequest(f"The name of the model has more than {MAX_NAME_BYTES} bytes.")
        self._held = None  # a member's name, and not the one that is looked for

    def _string_over(self) -> None:
        self._in_string = False
        if self._held is None:
            return
        text = _text(bytes(self._held))
        self._held = None
        if self._of_model:
            self._of_model = False
            self._tell(text)
        elif self._is_key:
            self._of_model = text == _FIELD.encode()


def _text(raw: bytes) -> bytes:
    """What stands between two quotes, without escapes."""
    if b"\\" not in raw:
        return raw
    try:
        text: str = json.loads(b'"%b"' % raw, strict=False)
    except ValueError as error:
        raise BadRequest("The body is not JSON.") from error
    return text.encode(errors="surrogatepass")


class _InForm:
    """Finds the field ``model`` of a form, wherever it stands."""

    def __init__(self, boundary: bytes, tell: Callable[[bytes], None]) -> None:
        if not boundary:
            raise BadRequest("The form's Content-Type has no boundary.")
        self._tell = tell
        self._over = False
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._held: bytearray | None = None
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begins,
                    "on_header_field": self._header_name,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_ends,
                    "on_headers_finished": self._head_ends,
                    "on_part_data": self._data,
                    "on_part_end": self._part_ends,
                    "on_end": self._form_ends,
                },
            )
        except FormParserError as error:
            raise BadRequest("The form's boundary is not valid.") from error

    def feed(self, piece: bytes) -> None:
        """Look at the next piece."""
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise BadRequest("The body is not a form as its Content-Type says.") from error

    def end(self) -> None:
        """There was the last one."""
        if not self._over:
            raise BadRequest("The form ends before its last boundary.")

    def _part_begins(self) -> None:
        self._disposition, self._held = b"", None

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _head_ends(self) -> None:
        _, options = parse_options_header(self._disposition)
        if options.get(b"name") == _FIELD.encode() and b"filename" not in options:
            self._held = bytearray()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._held is None:
            return
        self._held += data[start:end]
        if len(self._held) > MAX_NAME_BYTES:
            raise BadRequest(f"The name of the model has more than {MAX_NAME_BYTES} bytes.")

    def _part_ends(self) -> None:
        if self._held is not None:
            self._tell(bytes(self._held))

    def _form_ends(self) -> None:
        self._over = True
