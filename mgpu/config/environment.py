"""What the environment sets: ``MGPU_SERVER__LISTEN=…`` is ``server.listen``.

pydantic-settings reads the variables; a structure may be given as JSON. Variables without a double
underscore that name no section (``MGPU_URL``, ``MGPU_API_KEY``) belong to the client commands.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from mgpu.config.model import Config
from mgpu.config.problems import KeyPath, Problem, did_you_mean

PREFIX = "MGPU_"
DELIMITER = "__"
NAMED = ("consumers", "models")
"""Sections whose keys are names of the file's own choice."""


@dataclass(frozen=True, slots=True)
class Overlay:
    """Values of the environment, the variable behind each key path, and strangers."""

    data: dict[str, Any]
    variables: dict[KeyPath, str]
    problems: tuple[tuple[KeyPath, Problem], ...]


def read(file_data: Mapping[str, Any]) -> Overlay:
    """Read the environment; names are matched with those of ``file_data`` as far as they can be.

    Variables know neither case nor hyphens, so ``MGPU_CONSUMERS__MY_TTS__URL`` is for the file's
    ``my-tts`` when there is one.
    """
    data: dict[str, Any] = _Source(_Settings)()
    for section in NAMED:
        given = data.get(section)
        if isinstance(given, dict):
            own = _names(file_data, section)
            data[section] = {own.get(_folded(key), key): value for key, value in given.items()}
    variables: dict[KeyPath, str] = {}
    strangers: list[tuple[KeyPath, Problem]] = []
    for name, path in sorted(_paths()):
        section, *keys = path
        if section not in Config.model_fields:
            strangers.append((path, _stranger(name, section)))
            continue
        if section in NAMED and keys:
            keys[0] = _names(file_data, section).get(_folded(keys[0]), keys[0])
        variables.update(dict.fromkeys(_below((section, *keys), data), name))
    return Overlay(data, variables, tuple(strangers))


class _Settings(Config, BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter=DELIMITER)


class _Source(EnvSettingsSource):
    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """Decode JSON; what is none is kept, so that the model refuses it with a place."""
        try:
            return super().decode_complex_value(field_name, field, value)
        except (ValueError, RecursionError):
            return value


def _paths() -> Iterator[tuple[str, tuple[str, ...]]]:
    for name in os.environ:
        if name.upper().startswith(PREFIX):
            path = tuple(name[len(PREFIX) :].lower().split(DELIMITER))
            if len(path) > 1 or path[0] in Config.model_fields:
                yield name, path


def _stranger(name: str, section: str) -> Problem:
    hint = did_you_mean(section, Config.model_fields, what="sections")
    return Problem(None, None, section, f"unknown section; {hint}", name)


def _below(path: KeyPath, data: Mapping[str, Any]) -> Iterator[KeyPath]:
    """Give ``path`` and every key path inside the value it has in ``data``."""
    value: Any = data
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    unseen = [(path, value)]
    while unseen:
        path, value = unseen.pop()
        yield path
        if isinstance(value, dict):
            unseen += [((*path, key), item) for key, item in value.items()]
        elif isinstance(value, list):
            unseen += [((*path, index), item) for index, item in enumerate(value)]


def _names(data: Mapping[str, Any], section: str) -> dict[str, str]:
    names = data.get(section)
    return {_folded(name): name for name in names} if isinstance(names, dict) else {}


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "_", name.lower())
