"""What pydantic found wrong, said in the words of broker.yaml.

pydantic reports each member of a union apart; here one value gets one sentence. A value is shown
only where it cannot be a secret.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from mgpu.config.problems import KeyPath, did_you_mean
from mgpu.config.schema import keys_at

MAX_SHOWN = 40
_SECRET = frozenset({"api_keys", "api_keys_file", "headers", "body", "url", "environment"})

_NEEDS: Mapping[str, str] = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "path_type": "a path",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "too_short": "not empty",
}
"""What the value must be, for each of pydantic's error types; braces hold its context."""


def sentences(
    error: ValidationError,
    data: Mapping[str, Any],
    keys: Callable[[KeyPath], Iterable[str]] = keys_at,
) -> Iterator[tuple[KeyPath, str]]:
    """Give the key path and one sentence for every value of ``data`` that is wrong.

    ``keys`` knows the keys of a section.
    """
    by_path: dict[KeyPath, list[ErrorDetails]] = defaultdict(list)
    for details in error.errors(include_url=False):
        by_path[_path(details, data)].append(details)
    for path, found in by_path.items():
        deeper = any(other != path and other[: len(path)] == path for other in by_path)
        if not deeper or found[0]["type"] == "extra_forbidden" or _is_of_the_key(found[0]):
            yield path, _sentence(path, found, keys)


def _is_of_the_key(details: ErrorDetails) -> bool:
    """Whether the key itself is wrong, such as a route that is no path, whatever its value is."""
    return details["loc"][-1] == "[key]"


def _path(details: ErrorDetails, data: Any) -> KeyPath:
    """Leave the names of union members out of pydantic's ``loc``: only what is in the data."""
    path: list[str | int] = []
    for step in details["loc"]:
        if _holds(data, step):
            data = data[step]
            path.append(step)
    if details["type"] == "missing":
        path.append(details["loc"][-1])
    return tuple(path)


def _holds(data: Any, step: str | int) -> bool:
    if isinstance(data, list):
        return isinstance(step, int) and step < len(data)
    return isinstance(data, dict) and step in data


def _sentence(
    path: KeyPath, found: list[ErrorDetails], keys: Callable[[KeyPath], Iterable[str]]
) -> str:
    first = found[0]
    match first["type"]:
        case "missing":
            return "is required"
        case "extra_forbidden":
            hint = did_you_mean(str(path[-1]), keys(path[:-1]), what="keys")
            return f"unknown key; {hint}"
        case "value_error":
            return _own_words(path, first)
        case _:
            needs = [_need(details) for details in found if details["type"] in _NEEDS]
            if not needs:
                return "is not valid" if _is_secret(path) else first["msg"]
            return f"must be {' or '.join(dict.fromkeys(needs))}{_shown(path, first['input'])}"


def _need(details: ErrorDetails) -> str:
    need = _NEEDS[details["type"]].format(**details.get("ctx", {}))
    return need.replace("'", "")


def _own_words(path: KeyPath, details: ErrorDetails) -> str:
    """Return the message of a validator of the model; those of libraries may quote the value."""
    message = details["msg"].removeprefix("Value error, ")
    if _is_secret(path) and not message.startswith("must "):
        return "must be http://HOST[:PORT] or https://HOST[:PORT]"
    return message


def _shown(path: KeyPath, value: object) -> str:
    if _is_secret(path):
        return ""
    match value:
        case None:
            shown = "empty"
        case bool():
            shown = str(value).lower()
        case list():
            shown = "a list"
        case dict():
            shown = "a mapping"
        case _:
            shown = repr(value)
    return f", not {shown}" if len(shown) <= MAX_SHOWN else ""


def _is_secret(path: KeyPath) -> bool:
    return any(step in _SECRET for step in path)
