"""A workflow of the user's, and the places in it that requests fill in.

The file is what ComfyUI exports in API format: a JSON object of nodes, each with ``class_type`` and
``inputs``. A place is ``NODE.inputs.INPUT``; the value that the file has there says what kind of
value belongs there, and is what counts where neither a request nor a default gives another.
"""

from __future__ import annotations

import copy
import difflib
import json
import math
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from mgpu.config.model import WorkflowConfig
from mgpu.config.problems import did_you_mean
from mgpu.errors import BadRequest

MAX_FILE_BYTES = 8 << 20
RANDOM = "random"
"""As a default: another number each time."""
_RANDOM_BITS = 32

_KINDS: Mapping[type, str] = {
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
}
"""A whole number in the file says nothing: ComfyUI's editor writes 8.0 as 8."""


Key = tuple[str | int, ...]


class WorkflowError(ValueError):
    """A workflow cannot be used. ``problems`` say where in its section, and why."""

    def __init__(self, *problems: tuple[Key, str]) -> None:
        super().__init__("; ".join(message for _, message in problems))
        self.problems = problems


class _Place(NamedTuple):
    node: str
    input: str


class Workflow:
    """A graph with named places. Made by ``read``."""

    def __init__(
        self,
        graph: Mapping[str, Any],
        places: Mapping[str, tuple[_Place, ...]],
        defaults: Mapping[str, Any],
        path: str,
    ) -> None:
        self._graph = graph
        self._places = places
        self._defaults = defaults
        self.path = path
        """Where the consumer takes it."""

    @property
    def fields(self) -> tuple[str, ...]:
        """What a request may give."""
        return tuple(self._places)

    def filled(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the graph with these values in their places, and the defaults in theirs.

        Raises ``errors.BadRequest`` for a field that has no place and for a value of another kind.
        """
        for name, value in fields.items():
            if name not in self._places:
                near = difflib.get_close_matches(name, self._places, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(self._places)}"
                raise BadRequest(f"The workflow has no place for {name!r}; {hint}")
            if problem := self._problem(name, value):
                raise BadRequest(f"{name!r} {problem}.")
        graph = copy.deepcopy(dict(self._graph))
        for name, places in self._places.items():
            if name not in fields and name not in self._defaults:
                continue
            value = fields[name] if name in fields else self._default(name)
            for node, key in places:
                graph[node]["inputs"][key] = value
        return graph

    def _default(self, name: str) -> Any:
        value = self._defaults[name]
        if value == RANDOM and _KINDS[self._kind(name)] == _KINDS[int]:
            return secrets.randbits(_RANDOM_BITS)
        return value

    def _kind(self, name: str) -> type:
        node, key = self._places[name][0]
        return type(self._graph[node]["inputs"][key])

    def _problem(self, name: str, value: Any) -> str | None:
        need = _KINDS[self._kind(name)]
        if _KINDS.get(type(value)) != need:
            return f"must be {need}"
        if isinstance(value, float) and not math.isfinite(value):
            return "must be a finite number"
        return None

    def doubtful_defaults(self) -> Iterator[tuple[Key, str]]:
        """Give every default that no request could give."""
        for name, value in self._defaults.items():
            if name not in self._places:
                hint = did_you_mean(name, self._places, what="places")
                yield ("defaults", name), f"no place is called {name!r}; {hint}"
            elif value == RANDOM and _KINDS[self._kind(name)] == _KINDS[int]:
                continue
            elif problem := self._problem(name, value):
                yield ("defaults", name), problem


def is_graph(document: Any) -> bool:
    """Whether this is a workflow in API format: an object of nodes, and nothing else."""
    return (
        isinstance(document, dict)
        and bool(document)
        and all(isinstance(node, dict) and "class_type" in node for node in document.values())
    )


def is_of_editor(document: Any) -> bool:
    """Whether this is a workflow as the editor saves it, which the server cannot run."""
    return isinstance(document, dict) and isinstance(document.get("nodes"), list)


def read(config: WorkflowConfig) -> Workflow:
    """Read a workflow's file and find its places; raise ``WorkflowError`` with every problem."""
    graph = _graph(config.file)
    problems: list[tuple[Key, str]] = []
    places: dict[str, tuple[_Place, ...]] = {}
    for name, given in config.places.items():
        try:
            places[name] = _places(graph, config.file, given)
        except WorkflowError as error:
            problems += [(("places", name, *key), message) for key, message in error.problems]
    if not problems:
        workflow = Workflow(graph, places, config.defaults, config.path)
        problems += workflow.doubtful_defaults()
    if problems:
        raise WorkflowError(*problems)
    return workflow


def _places(
    graph: Mapping[str, Any], file: Path, given: str | tuple[str, ...]
) -> tuple[_Place, ...]:
    """Find the places of one name, all for the same kind of value."""
    if isinstance(given, str):
        return (_place(graph, file, given, ()),)
    if not given:
        raise WorkflowError(((), "must name at least one place"))
    found = tuple(_place(graph, file, text, (index,)) for index, text in enumerate(given))
    if len({_KINDS[type(graph[node]["inputs"][key])] for node, key in found}) > 1:
        raise WorkflowError(((), "names places for different kinds of values"))
    return found


def _graph(path: Path) -> dict[str, Any]:
    def fail(message: str) -> NoReturn:
        raise WorkflowError((("file",), f"{path} {message}"))

    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        fail(f"cannot be read: {error.strerror}")
    if len(content) > MAX_FILE_BYTES:
        fail(f"is larger than {MAX_FILE_BYTES} bytes")
    try:
        graph = json.loads(content, parse_constant=lambda text: fail(f"holds {text}"))
    except json.JSONDecodeError as error:
        fail(f"is not JSON: line {error.lineno}, column {error.colno}: {error.msg}")
    except (UnicodeDecodeError, RecursionError):
        fail("is not JSON")
    if not isinstance(graph, dict) or not graph:
        fail("is not a workflow: it must be a JSON object of nodes")
    if is_of_editor(graph):
        fail("is a workflow as the editor saves it: export it in API format")
    for name, node in graph.items():
        if not isinstance(node, dict) or not isinstance(node.get("inputs"), dict):
            fail(f"is not a workflow in API format: node {name} has no inputs")
    return graph


def _place(graph: Mapping[str, Any], file: Path, text: str, key: Key) -> _Place:
    def fail(message: str) -> NoReturn:
        raise WorkflowError((key, message))

    node, _, rest = text.partition(".")
    section, _, name = rest.partition(".")
    if section != "inputs" or not name:
        fail(f"must be NODE.inputs.INPUT, not {text!r}")
    if node not in graph:
        fail(f"{file} has no node {node}; {did_you_mean(node, graph, what='nodes')}")
    inputs = graph[node]["inputs"]
    kind = graph[node].get("class_type", "?")
    if name not in inputs:
        hint = did_you_mean(name, inputs, what="inputs")
        fail(f"node {node} ({kind}) has no input {name!r}; {hint}")
    if type(inputs[name]) not in _KINDS:
        fail(f"input {name!r} of node {node} ({kind}) is connected to another node")
    return _Place(node, name)
