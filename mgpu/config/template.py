"""Paths and bodies with ``{name}`` in them, filled with values that a consumer gave.

A value cannot leave its place: in a path it is percent-encoded whole, so that it is part of one
segment or one query value, and in a body it stands inside the text that names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_DOTS = frozenset({".", ".."})
MAX_VALUE_CHARS = 1024
_LITERAL = "%/:=&~+!$,;'@()*{}"
"""What stays as it is of a path in the configuration."""


class UnfitValueError(ValueError):
    """A value that cannot be put into a path."""


def names_in(template: Any) -> frozenset[str]:
    """Every name in a text, or in any text of a JSON value."""
    match template:
        case str():
            return frozenset(_PLACEHOLDER.findall(template))
        case list():
            return frozenset[str]().union(*map(names_in, template))
        case dict():
            return frozenset[str]().union(*map(names_in, template.values()))
        case _:
            return frozenset()


def has_stray_brace(path: str) -> bool:
    """Whether a brace of a path belongs to no name."""
    return bool(set(_PLACEHOLDER.sub("", path)) & set("{}"))


def fill_path(template: str, values: Mapping[str, Any]) -> str:
    """Return the path with its query, encoded; a value that is not there is empty text.

    Raises ``UnfitValueError`` for a value that is neither text nor a whole number, that is longer
    than ``MAX_VALUE_CHARS``, or that would be a dot segment.
    """

    def filled(text: str) -> str:
        literal = quote(text, safe=_LITERAL)
        return _PLACEHOLDER.sub(lambda match: _encoded(values.get(match[1], "")), literal)

    path, mark, query = template.partition("?")
    encoded = filled(path)
    if any(segment in _DOTS for segment in encoded.split("/")):
        raise UnfitValueError("a value makes a dot segment of the path")
    return encoded + mark + filled(query)


def fill_body(template: Any, values: Mapping[str, str]) -> Any:
    """Return a JSON value with the names in its texts replaced."""
    match template:
        case str():
            return _PLACEHOLDER.sub(lambda match: values.get(match[1], ""), template)
        case list():
            return [fill_body(item, values) for item in template]
        case dict():
            return {key: fill_body(item, values) for key, item in template.items()}
        case _:
            return template


def _encoded(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UnfitValueError("a value is neither text nor a whole number")
    text = str(value)
    if len(text) > MAX_VALUE_CHARS:
        raise UnfitValueError(f"a value is longer than {MAX_VALUE_CHARS} characters")
    try:
        return quote(text, safe="")
    except UnicodeEncodeError as error:
        raise UnfitValueError("a value is not text that can be sent") from error
