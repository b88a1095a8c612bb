"""Which keys and which kind of value the model has at a key path: for messages about what is not.

The model itself (``mgpu.config.model``) is asked; nothing is written down twice.
"""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from mgpu.config.model import Config
from mgpu.config.problems import KeyPath


def kinds_at(path: KeyPath, root: type[BaseModel] = Config) -> tuple[Any, ...]:
    """Return the types a value at ``path`` may have, unions taken apart; none: no such key."""
    kinds: tuple[Any, ...] = (root,)
    for step in path:
        kinds = tuple(kind for outer in kinds for kind in _members(_step(outer, step)))
    return kinds


def keys_at(path: KeyPath, root: type[BaseModel] = Config) -> tuple[str, ...]:
    """Return the keys that the section at ``path`` knows; none where keys are free."""
    return tuple(
        key for kind in kinds_at(path, root) if _is_model(kind) for key in kind.model_fields
    )


def _step(kind: Any, step: str | int) -> Any:
    if kind is Any:
        return Any
    if _is_model(kind):
        field = kind.model_fields.get(step)
        return field.annotation if field else NoneType
    arguments = get_args(kind)
    match get_origin(kind):
        case origin if origin is dict:
            return arguments[1]
        case origin if origin is tuple:
            return arguments[0]
        case _:
            return NoneType


def _members(kind: Any) -> tuple[Any, ...]:
    if get_origin(kind) is Annotated:
        return _members(get_args(kind)[0])
    if get_origin(kind) in {Union, UnionType}:
        return tuple(member for part in get_args(kind) for member in _members(part))
    return () if kind is NoneType else (kind,)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
