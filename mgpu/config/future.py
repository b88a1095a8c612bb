"""Keys and values of broker.yaml that are promised and not there yet.

A key whose value means "off" is accepted, since off is what this version does. A line goes from
here when ``mgpu.config.model`` gets the key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mgpu.config.problems import KeyPath, Report

_OFF = frozenset({"none", "null", "false", "no", "off", ""})

KEYS: Mapping[str, frozenset[str]] = {
    "scheduler.restore_when_idle": _OFF,
}
"""Each key with the values, as lower-case text, that mean "off"."""


def drop(data: dict[str, Any], report: Report) -> None:
    """Take what is not there yet out of ``data``, and report it unless it is off."""
    for pattern, off in KEYS.items():
        for section, path in _matches(data, pattern):
            value = section.pop(path[-1])
            if str(value).lower() not in off:
                report.add(path, "is not supported by this version yet")


def _matches(data: dict[str, Any], pattern: str) -> Iterator[tuple[dict[str | int, Any], KeyPath]]:
    """Give each section of ``data`` that has the pattern's key, and the key's path."""
    *outer, key = pattern.split(".")
    found: list[tuple[Any, KeyPath]] = [(data, ())]
    for step in outer:
        found = [
            (section[name], (*path, name))
            for section, path in found
            if isinstance(section, dict)
            for name in (section if step == "*" else {step} & section.keys())
        ]
    for section, path in found:
        if isinstance(section, dict) and key in section:
            yield section, (*path, key)
