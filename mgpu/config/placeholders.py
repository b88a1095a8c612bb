"""``{name}`` in the strings of a request, replaced by a value that stays where it was put.

In a path a value is percent-encoded, its slashes excepted before the query (model names have some,
and services that take them there want them as they are). In a JMESPath it stands inside quotes and
cannot end them. Anywhere else it is text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

NAME = re.compile(r"\{([a-z_][a-z0-9_]*)\}")
_EXPRESSIONS = frozenset({"when", "items"})


class BadValueError(ValueError):
    """A value that cannot be put there; says why, and does not quote it."""


def fill(value: Any, values: Mapping[str, str], key: str | int = "") -> Any:
    """Return ``value`` with every ``{name}`` of ``values`` replaced, whatever it is nested in.

    ``key`` is what the value stands under: it says what kind of text it is. Other braces are left
    alone. Raises ``BadValueError``.
    """
    match value:
        case dict():
            return {name: fill(item, values, name) for name, item in value.items()}
        case list():
            return [fill(item, values, key) for item in value]
        case str() if key == "path":
            path, mark, query = value.partition("?")
            return _fill(path, values, _in_path) + mark + _fill(query, values, _in_query)
        case str() if key in _EXPRESSIONS:
            return _fill(value, values, _in_expression)
        case str():
            return _fill(value, values, str)
        case _:
            return value


def names_in(value: Any) -> Iterator[str]:
    """Give every name that stands in braces in a value, as often as it does."""
    match value:
        case dict():
            for item in value.values():
                yield from names_in(item)
        case list():
            for item in value:
                yield from names_in(item)
        case str():
            yield from NAME.findall(value)
        case _:
            pass


def _fill(text: str, values: Mapping[str, str], encode: Callable[[str], str]) -> str:
    return NAME.sub(
        lambda found: encode(values[found[1]]) if found[1] in values else found[0], text
    )


def _in_path(value: str) -> str:
    if any(segment in {"", ".", ".."} for segment in value.split("/")):
        raise BadValueError("has an empty, '.' or '..' segment and cannot be part of a path")
    return quote(value, safe="/", errors="surrogatepass")


def _in_query(value: str) -> str:
    return quote(value, safe="", errors="surrogatepass")


def _in_expression(value: str) -> str:
    return value.replace("'", "\\'")
