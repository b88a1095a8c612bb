"""``{gpu_index}`` and ``{gpu_uuid}`` in a consumer's configuration: where it is to be loaded.

They stand in the path, headers and body of ``load`` and ``unload``, in ``systemd_unit`` and
``container``, and in the words of ``command`` and the values of ``environment``, and are filled in
with the GPUs that were chosen; several are joined by commas. In a body, text that is nothing but
``{gpu_index}`` becomes a number where there is one GPU, as JSON has numbers for that.
``{{gpu_index}}`` stands for the text ``{gpu_index}`` itself. Other braces in a body, a command or a
variable (JSON or Jinja in a string) are left as they are, unless they look like a placeholder that
was mistyped.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

from mgpu.config.model import ConsumerConfig
from mgpu.config.problems import KeyPath, did_you_mean
from mgpu.ports import Placement

NAMES = ("gpu_index", "gpu_uuid")
ITEM = "item"
"""Stands for one of ``unload.for_each`` (``mgpu.consumers.items``)."""

_DOUBLED_OR_SINGLE = re.compile(r"\{\{(?P<doubled>\w+)\}\}|(?<!\{)\{(?P<single>\w+)\}(?!\})")
_MISTYPED = 0.75
"""How alike a name in a body must be to a placeholder's to be taken for a slip (difflib)."""

SOMEWHERE = Placement((0,), ("GPU-0",))
"""For checking what a filled-in name looks like."""


def fill_text(text: str, placement: Placement) -> str:
    """Fill in a path, a header, a word."""

    def filled(found: re.Match[str]) -> str:
        if found["doubled"] in NAMES:
            return f"{{{found['doubled']}}}"
        values = {"gpu_index": placement.gpus, "gpu_uuid": placement.uuids}
        value = values.get(found["single"])
        return found[0] if value is None else ",".join(map(str, value))

    return _DOUBLED_OR_SINGLE.sub(filled, text)


def fill_json(value: Any, placement: Placement) -> Any:
    """Fill in a JSON value; only text is looked at, at any depth, and no keys."""
    match value:
        case "{gpu_index}" if len(placement.gpus) == 1:
            return placement.gpus[0]
        case str():
            return fill_text(value, placement)
        case dict():
            return {key: fill_json(item, placement) for key, item in value.items()}
        case list() | tuple():
            return [fill_json(item, placement) for item in value]
        case _:
            return value


def fill_unit(unit: str, placement: Placement) -> str:
    """Fill in a unit's name, escaped as systemd-escape(1) does: the unit reads it as ``%I``."""
    escaped = Placement(placement.gpus, tuple(map(_escaped, placement.uuids)))
    return fill_text(unit, escaped).replace(",", r"\x2c")


def fill_consumer(config: ConsumerConfig, placement: Placement) -> ConsumerConfig:
    """A consumer's configuration as it is on these GPUs."""
    changes: dict[str, Any] = {}
    for key, call in (("load", config.load), ("unload", config.unload)):
        if call is not None:
            filled = {
                "path": fill_text(call.path, placement),
                "body": fill_json(call.body, placement),
                "headers": {k: fill_text(v, placement) for k, v in call.headers.items()},
            }
            changes[key] = call.model_copy(update=filled)
    if config.systemd_unit is not None:
        changes["systemd_unit"] = fill_unit(config.systemd_unit, placement)
    if config.container is not None:
        # A comma cannot stand in a container's name.
        changes["container"] = fill_text(config.container, placement).replace(",", "-")
    if config.command is not None:
        changes["command"] = tuple(fill_text(word, placement) for word in config.command)
    changes["environment"] = {k: fill_text(v, placement) for k, v in config.environment.items()}
    return config.model_copy(update=changes)


def are_in(config: ConsumerConfig) -> bool:
    """Whether anything of a consumer's configuration depends on where it is loaded.

    That includes text that only escapes a placeholder.
    """
    return fill_consumer(config, SOMEWHERE) != config


def used(text: str) -> frozenset[str]:
    """The placeholders in a text."""
    return frozenset(found["single"] for found in _DOUBLED_OR_SINGLE.finditer(text)) & set(NAMES)


def unknown(text: str) -> Iterator[str]:
    """The names in single braces that are no placeholder's."""
    for found in _DOUBLED_OR_SINGLE.finditer(text):
        if found["single"] and found["single"] not in NAMES:
            yield found["single"]


def slips(config: ConsumerConfig) -> Iterator[tuple[KeyPath, str]]:
    """Give names in braces that stand for nothing, and placeholders where none is filled in."""
    texts, values = _places(config)
    each = config.unload is not None and config.unload.for_each is not None
    for path, text in texts:
        for name in unknown(text):
            if not (each and path[0] == "unload" and name == ITEM):
                yield path, _stands_for_nothing(name)
    for path, value in values:
        for message in slips_in(value):
            yield path, message
    for key, probed in (("health", config.health), ("resident", config.resident)):
        if probed is not None and used(probed.path):
            message = "a placeholder can stand only in load, unload, and what starts a consumer"
            yield (key, "path"), message


def slips_in(value: Any) -> Iterator[str]:
    """What is wrong with the names in braces of a JSON value."""
    return map(_stands_for_nothing, mistyped(value))


def _places(
    config: ConsumerConfig,
) -> tuple[list[tuple[KeyPath, str]], list[tuple[KeyPath, Any]]]:
    """Where every name in braces is a placeholder, and where only what looks like one is."""
    texts: list[tuple[KeyPath, str]] = []
    values: list[tuple[KeyPath, Any]] = [(("command",), config.command)]
    values += [(("environment", name), value) for name, value in config.environment.items()]
    for key, text in (("systemd_unit", config.systemd_unit), ("container", config.container)):
        if text is not None:
            texts.append(((key,), text))
    for key, call in (("load", config.load), ("unload", config.unload)):
        if call is not None:
            texts.append(((key, "path"), call.path))
            texts += [((key, "headers", name), text) for name, text in call.headers.items()]
            values.append(((key, "body"), call.body))
    return texts, values


def mistyped(value: Any) -> Iterator[str]:
    """The names in a body, or anything like it, that must have been meant for a placeholder."""
    match value:
        case str():
            for name in unknown(value):
                near = difflib.get_close_matches(name, NAMES, n=1, cutoff=_MISTYPED)
                if near or name.startswith("gpu"):
                    yield name
        case dict():
            for item in value.values():
                yield from mistyped(item)
        case list() | tuple():
            for item in value:
                yield from mistyped(item)
        case _:
            pass


def _stands_for_nothing(name: str) -> str:
    return f"{{{name}}} stands for nothing; {did_you_mean(name, NAMES, what='placeholders')}"


def _escaped(text: str) -> str:
    return text.replace("-", r"\x2d")
