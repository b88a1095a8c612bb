"""Filling consumers in from their presets: what the user wrote wins, key by key.

A mapping of the user's is filled up from the preset's, save for one that has a ``path``: that is
another request, and nothing of the preset's is left in it. Lists and bodies are taken or replaced
whole, and ``null`` takes a key of the preset's away. What a service needs depends on its models,
so its footprint is measured where neither says one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mgpu.config import presets
from mgpu.config.placeholders import BadValueError, fill, names_in
from mgpu.config.presets import CHANGE_ME, Found, NoSuchPresetError
from mgpu.config.problems import InvalidConfig, KeyPath, Report, did_you_mean

_WHOLE = frozenset({"body"})


@dataclass(frozen=True, slots=True)
class Filled:
    """A consumer's preset, and which of the consumer's keys are, or hold something, of it."""

    found: Found
    keys: tuple[str, ...]


def fill_in(data: dict[str, Any], folder: Path, report: Report) -> dict[str, Filled]:
    """Fill the consumers of ``data`` in from their presets, and report what is wrong with those.

    ``folder`` is that of broker.yaml. What came from a preset is reported with the preset's line.
    """
    filled: dict[str, Filled] = {}
    consumers = data.get("consumers")
    if not isinstance(consumers, dict):
        return filled
    for name, consumer in consumers.items():
        if not isinstance(consumer, dict):
            continue
        path = ("consumers", name)
        found = _find(consumer, path, folder, report)
        if found is not None:
            keys = _fill_consumer(consumer, found, path, report)
            filled[name] = Filled(found, keys)
    return filled


def _find(consumer: dict[str, Any], path: KeyPath, folder: Path, report: Report) -> Found | None:
    name = consumer.get("preset")
    if name is None:
        if consumer.get("parameters"):
            report.add((*path, "parameters"), "are a preset's, and no preset is named")
        return None
    if not isinstance(name, str):
        return None  # the model says what it must be
    try:
        return presets.find(name, folder)
    except NoSuchPresetError as error:
        report.add((*path, "preset"), str(error))
    except InvalidConfig as error:
        for problem in error.problems:
            report.add_problem((*path, "preset"), problem)
    return None


def _fill_consumer(
    consumer: dict[str, Any], found: Found, path: KeyPath, report: Report
) -> tuple[str, ...]:
    values = _parameters(consumer.get("parameters") or {}, found, (*path, "parameters"), report)
    given: list[str] = []
    for key, value in found.preset.filled_in.items():
        if any(name in found.preset.parameters.keys() - values.keys() for name in names_in(value)):
            continue  # it takes a parameter that was not given
        try:
            ready = fill(value, values, key)
        except BadValueError as error:
            report.add((*path, "parameters"), f"a value of it {error} ({key}.path)")
            continue
        taken = _merge(consumer, key, ready, (*path, key))
        if taken:
            given.append(key)
        for below in taken:
            line = _line(found, below[len(path) :])
            report.origins.presets[below] = (str(found.path), line)
    if "footprint_mib" not in consumer:
        consumer["footprint_mib"] = "auto"
        given.append("footprint_mib")
    return tuple(given)


def _parameters(given: Any, found: Found, path: KeyPath, report: Report) -> dict[str, str]:
    """The value of every parameter that has one."""
    known = found.preset.parameters
    values = {name: each.default for name, each in known.items() if each.default is not None}
    if not isinstance(given, dict):
        return values
    for name, value in given.items():
        if name not in known:
            hint = did_you_mean(name, known, what="parameters")
            report.add((*path, name), f"the preset {found.name} has no such parameter; {hint}")
        elif isinstance(value, str):
            values[name] = value
            if value == CHANGE_ME:
                message = f"still says {CHANGE_ME}: {known[name].description}"
                problem = report.origins.problem((*path, name), message)
                report.add_problem((*path, name), replace(problem, unfinished=True))
    for name, each in known.items():
        if each.required and name not in given:
            report.add(
                (*path[:-1], "preset"), f"{found.name} needs parameters.{name}: {each.description}"
            )
    return values


def _merge(owner: dict[str, Any], key: str, value: Any, path: KeyPath) -> list[KeyPath]:
    """Put a preset's value where the user has none; return the key paths that are the preset's."""
    if key not in owner:
        owner[key] = value
        return [path, *_below(value, path)]
    mine = owner[key]
    if key in _WHOLE or not isinstance(mine, dict) or not isinstance(value, Mapping):
        return []
    if "path" in mine:
        return []
    taken: list[KeyPath] = []
    for name, item in value.items():
        taken += _merge(mine, name, item, (*path, name))
    return taken


def _below(value: Any, path: KeyPath) -> list[KeyPath]:
    inner: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    return [below for key, item in inner for below in ((*path, key), *_below(item, (*path, key)))]


def _line(found: Found, below: KeyPath) -> int | None:
    return found.lines.get(("consumer", *below))
