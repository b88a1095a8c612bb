"""Keeps secrets out of what people read: values that are known, and values whose key says so.

Redaction works on the event's values before they are rendered, because rendering escapes: a key
with a quote in it looks different in JSON, in a ``repr`` inside a traceback and in a URL. Each
secret is therefore looked for in all of those forms. A number is never redacted by its key, so
that a fencing token stays readable.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

REDACTED = "[redacted]"

_SECRET_KEY = re.compile(
    r"authorization|cookie|api[-_ ]?key|password|passwd|secret|token|credential", re.IGNORECASE
)
_BEARER = re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]+")


class Redactor:
    """Replaces secrets by ``REDACTED`` in any JSON-like value; other objects become their repr."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = {form for secret in secrets if secret for form in _forms(secret)}
        # The longest first: a secret that begins another one must not cut it in half.
        longest_first = sorted(forms, key=lambda form: (-len(form), form))
        self._known = re.compile("|".join(map(re.escape, longest_first))) if forms else None

    def text(self, text: str) -> str:
        """``text`` without the known secrets and without what follows ``Bearer``."""
        if self._known is not None:
            text = self._known.sub(REDACTED, text)
        return _BEARER.sub(rf"\1{REDACTED}", text)

    def mapping(self, mapping: Mapping[Any, object]) -> dict[str, object]:
        """``mapping`` without secrets in its keys, nor values whose key names a secret."""
        return {self.text(str(key)): self._under(str(key), mapping[key]) for key in mapping}

    def value(self, value: object) -> object:
        """``value`` without secrets, at any depth."""
        match value:
            case None | bool() | int() | float():
                return value
            case str():
                return self.text(value)
            case Mapping():
                return self.mapping(value)
            case (str() as name, inner) if _SECRET_KEY.search(name):
                return [self.text(name), self._under(name, inner)]
            case list() | tuple() | set() | frozenset():
                return [self.value(inner) for inner in value]
            case _:
                return self.text(repr(value))

    def _under(self, key: str, value: object) -> object:
        named_secret = _SECRET_KEY.search(key) is not None
        if named_secret and value is not None and not isinstance(value, bool | int | float):
            return REDACTED
        return self.value(value)


def _forms(secret: str) -> Iterable[str]:
    yield secret
    yield repr(secret)[1:-1]
    yield json.dumps(secret)[1:-1]
    yield json.dumps(secret, ensure_ascii=False)[1:-1]
    yield quote(secret, safe="")
    yield quote_plus(secret)
