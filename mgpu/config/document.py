"""A YAML file as plain values, with the line of each: the reading half of the configuration.

Scalars are read by the core schema of YAML 1.2, so that ``on`` and ``12:30`` are text and never
``True`` or 750. A number with a leading zero means one thing to YAML 1.1 and another to 1.2, and
is refused. Keys are always text, a key given twice is a problem, and what a small file can unfold
to (aliases, depth) is bounded.

Source of the scalar forms: YAML 1.2.2, chapter 10.3.2, "Tag Resolution".
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from mgpu.config.problems import KeyPath

MAX_DEPTH = 32
MAX_NODES = 100_000

_BAD_TAG = "does not fit its tag, or the tag is not known here; quote text that starts with !"
_TAG = "tag:yaml.org,2002:"
_NOT_TEXT = re.compile("[\x00\ud800-\udfff]")
_NAME = re.compile(r"(alias|anchor|tag handle) ('.*'|\".*\")")
"""What PyYAML quotes of the text: a secret that begins with ``*``, ``&`` or ``!`` looks like it."""
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")


class UnreadableError(Exception):
    """The text is no YAML that can be gone on with; ``line`` starts at 1."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


@dataclass(slots=True)
class Document:
    """What a file says. ``problems`` are those that leave the rest readable."""

    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[KeyPath, int] = field(default_factory=dict)
    doubtful: dict[KeyPath, str] = field(default_factory=dict)
    """Text that a reader of YAML 1.1 takes for a boolean or a number."""
    problems: list[tuple[KeyPath, int, str]] = field(default_factory=list)


def parse(text: str) -> Document:
    """Return the document in ``text``.

    Raises ``UnreadableError`` for bad syntax, beyond the bounds, or when the top is no mapping.
    """
    root = _compose(text)
    if root is None or root.tag == f"{_TAG}null":
        return Document()
    if not isinstance(root, yaml.MappingNode):
        raise UnreadableError(
            "must be a mapping of sections (server:, consumers:, ...)", _line(root)
        )
    document = Document()
    document.data = _Reader(document).mapping(root, ())
    return document


class _Loader(yaml.SafeLoader):
    """Composes nodes and constructs nothing."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML fills it through a class method

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise UnreadableError(
                f"nested deeper than {MAX_DEPTH} levels", self.get_mark().line + 1
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


for _name, _form, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        (
            r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
        ),
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(rf"^(?:{_form})$"), _first)


def _compose(text: str) -> yaml.Node | None:
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UnreadableError(
            f"holds a control character (#{error.character:04x})", line
        ) from error
    try:
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        story = ", ".join(part for part in (error.context, error.problem) if part)
        story = _NAME.sub(r"\1", story)
        if mark is None:
            raise UnreadableError(story) from error
        raise UnreadableError(f"column {mark.column + 1}: {story}", mark.line + 1) from error
    except (ValueError, OverflowError) as error:  # "\UFFFFFFFF": the scanner does not look
        mark = loader.get_mark()
        raise UnreadableError(
            f"column {mark.column + 1}: no such character", mark.line + 1
        ) from error
    finally:
        loader.dispose()


class _Reader:
    """Walks the nodes once, unfolding aliases and merge keys."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._nodes = 0
        self._open: list[yaml.Node] = []
        self._yaml_1_1 = yaml.SafeLoader("")

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in self._pairs(node, path):
            key = str(key_node.value)
            if key in values:  # an explicit key comes before a merged one and wins
                continue
            below = (*path, key)
            inline = isinstance(value_node, yaml.ScalarNode)
            self._document.lines[below] = _line(value_node if inline else key_node)
            values[key] = self._value(value_node, below)
        return values

    def _value(self, node: yaml.Node, path: KeyPath) -> Any:
        self._enter(node)
        value: Any = None
        match node:
            case yaml.ScalarNode():
                value = self._scalar(node, path)
            case yaml.MappingNode(tag=tag) if tag == f"{_TAG}map":
                value = self.mapping(node, path)
            case yaml.SequenceNode(tag=tag) if tag == f"{_TAG}seq":
                value = []
                for index, item in enumerate(node.value):
                    self._document.lines[*path, index] = _line(item)
                    value.append(self._value(item, (*path, index)))
            case _:
                self._problem(path, node, _BAD_TAG)
        self._open.pop()
        return value

    def _enter(self, node: yaml.Node) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise UnreadableError(f"unfolds to more than {MAX_NODES} values", _line(node))
        if any(node is parent for parent in self._open):
            raise UnreadableError("an alias stands inside what it refers to", _line(node))
        self._open.append(node)

    def _pairs(
        self, node: yaml.MappingNode, path: KeyPath
    ) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
        """Give the node's own pairs, then those it merges with ``<<``."""
        first_lines: dict[str, int] = {}
        merges: list[yaml.Node] = []
        for key, value in node.value:
            if key.tag == f"{_TAG}merge":
                merges += value.value if isinstance(value, yaml.SequenceNode) else [value]
            elif not isinstance(key, yaml.ScalarNode) or _NOT_TEXT.search(key.value):
                self._problem(path, key, "a key must be plain text")
            elif key.value in first_lines:
                message = f"given twice, first on line {first_lines[key.value]}"
                self._problem((*path, key.value), key, message)
            else:
                first_lines[key.value] = _line(key)
                yield key, value
        for merged in merges:
            if not isinstance(merged, yaml.MappingNode):
                self._problem(path, merged, "<< takes a mapping, or a list of mappings")
                continue
            self._enter(merged)
            yield from self._pairs(merged, path)
            self._open.pop()

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        text: str = node.value
        try:
            value = _constructed(node.tag.removeprefix(_TAG), text)
        except (ValueError, OverflowError):
            self._problem(path, node, _BAD_TAG)
            return None
        if isinstance(value, str) and _NOT_TEXT.search(value):
            self._problem(path, node, "holds a character that is not text")
        elif isinstance(value, float) and not math.isfinite(value):
            self._problem(path, node, "must be a finite number")
        elif node.style is None and isinstance(value, int) and _LEADING_ZERO.fullmatch(text):
            self._problem(path, node, f"{text} may mean octal: drop the leading zero, or quote it")
        elif node.style is None and isinstance(value, str) and self._differs_in_yaml_1_1(text):
            self._document.doubtful[path] = text
        return value

    def _differs_in_yaml_1_1(self, text: str) -> bool:
        tag: str = self._yaml_1_1.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
        return tag.removeprefix(_TAG) in {"bool", "int", "float"}

    def _problem(self, path: KeyPath, node: yaml.Node, message: str) -> None:
        self._document.problems.append((path, _line(node), message))


def _constructed(tag: str, text: str) -> str | bool | int | float | None:
    match tag:
        case "str":
            return text
        case "null":
            return None
        case "bool" if text.lower() in {"true", "false"}:
            return text.lower() == "true"
        case "int":
            base = {"0x": 16, "0o": 8}.get(text[:2], 10)
            return int(text, base)
        case "float":
            return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
        case _:
            return _refuse(tag)


def _refuse(tag: str) -> NoReturn:
    raise ValueError(tag)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
