"""Changing single figures of a broker.yaml and nothing else of it.

The text around a figure stays as it is, byte for byte: comments, order, quotes, indentation. A
library that loads and dumps the file would lay it out anew; so the figure's place is taken from
PyYAML's parser, and only those characters are replaced. The new text is read as a configuration
before it takes the file's place.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import yaml

from mgpu.config import load
from mgpu.errors import ConfigError

_AFTER = "url"
"""Where a consumer has a key not yet, it comes after this one."""


def set_figures(path: Path, consumer: str, figures: Mapping[str, int]) -> None:
    """Write whole numbers into keys of ``consumers.CONSUMER``, all of them or none.

    Raises ``ConfigError`` when they cannot be written there, or the file would not be valid
    (``InvalidConfig``).
    """
    target = path.resolve()
    try:
        before = target.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    after = before
    for key, figure in figures.items():
        after = _with(after, consumer, key, str(figure), path)
    if after != before:
        _replace(target, after)


def _with(text: str, consumer: str, key: str, figure: str, path: Path) -> str:
    section = _section(text, consumer, path)
    entries = {name.value: (name, value) for name, value in section.value}
    if key in entries:
        name, value = entries[key]
        if not isinstance(value, yaml.ScalarNode) or value.start_mark.index < name.end_mark.index:
            raise ConfigError(
                f"{path}: consumers.{consumer}.{key} is an alias: write {figure} there"
            )
        return text[: value.start_mark.index] + figure + text[value.end_mark.index :]
    if _AFTER not in entries:
        raise ConfigError(
            f"{path}: consumers.{consumer} has no {_AFTER}: write {key}: {figure} there"
        )
    name, value = entries[_AFTER]
    end = value.end_mark.index
    if section.flow_style:
        return f"{text[:end]}, {key}: {figure}{text[end:]}"
    line_end = text.find("\n", end)
    line_end = len(text) if line_end < 0 else line_end
    indent = " " * name.start_mark.column
    return f"{text[:line_end]}\n{indent}{key}: {figure}{text[line_end:]}"


def _section(text: str, consumer: str, path: Path) -> yaml.MappingNode:
    """The consumer's own mapping; one that is shared with others must not be written to."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {error}") from error
    for step in ("consumers", consumer):
        own = [
            value
            for name, value in (node.value if isinstance(node, yaml.MappingNode) else ())
            if name.value == step and value.start_mark.index >= name.end_mark.index
        ]
        node = own[-1] if own else None
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}: there is no section consumers.{consumer} to write to")
    return node


def _replace(target: Path, text: str) -> None:
    """Put a valid file into place at once; owner and rights stay as they were."""
    try:
        handle, name = tempfile.mkstemp(".yaml", f".{target.stem}-", target.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
                file.write(text)
            load.load(temporary)
            shutil.copymode(target, temporary)
            old = target.stat()
            if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                os.chown(temporary, old.st_uid, old.st_gid)
            temporary.replace(target)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written: {error.strerror}") from error
