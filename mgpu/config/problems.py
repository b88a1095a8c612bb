"""What is wrong with a configuration: each thing with its place, all of them in one error.

A key path (``KeyPath``) is a value's way down the document: ``("consumers", "tts", "gpus", 0)``.
``Report`` gathers findings by key path and knows where each value was written: on a line of the
file or in a variable of the environment.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mgpu.errors import ConfigError

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. ``str`` gives ``FILE:LINE: KEY: MESSAGE``.

    ``file`` is None where an environment variable holds the value; ``variable`` then names it.
    ``line`` starts at 1 and is None where no line is to blame; so is an empty ``key``.
    """

    file: str | None
    line: int | None
    key: str
    message: str
    variable: str | None = None
    unfinished: bool = False
    """It is a value that ``mgpu init`` left to be filled in."""

    @property
    def place(self) -> str:
        """``FILE:LINE``, ``FILE`` or the variable's name."""
        if self.variable is not None:
            return self.variable
        return f"{self.file}:{self.line}" if self.line else str(self.file)

    def __str__(self) -> str:
        return ": ".join(part for part in (self.place, self.key, self.message) if part)


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem of the value at ``path``, as long as all of ``rests_on`` is sound."""

    path: KeyPath
    message: str
    rests_on: tuple[KeyPath, ...] = ()


class InvalidConfig(ConfigError):  # noqa: N818 - named as its kin in mgpu.errors
    """The configuration is not valid."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(map(str, self.problems)))


@dataclass(frozen=True, slots=True)
class Origins:
    """Where values were written: the line of each key path, and the variable of each."""

    file: str
    lines: Mapping[KeyPath, int]
    variables: Mapping[KeyPath, str]
    """Every key path that the environment sets, those inside a JSON value too."""
    presets: dict[KeyPath, tuple[str, int | None]] = field(default_factory=dict)
    """The file and line of every key path that a preset sets."""

    def problem(self, path: KeyPath, message: str) -> Problem:
        """Place the problem; a missing value is the fault of what it is missing from."""
        key = dotted(path)
        if path in self.variables:
            return Problem(None, None, key, message, self.variables[path])
        for length in range(len(path), 0, -1):
            parent = path[:length]
            if parent in self.presets:
                return Problem(*self.presets[parent], key, message)
            if parent in self.lines:
                return Problem(self.file, self.lines[parent], key, message)
            for variable_path, variable in self.variables.items():
                if variable_path[:length] == parent:
                    return Problem(None, None, key, message, variable)
        return Problem(self.file, None, key, message)


class Report:
    """The problems found so far, each of them once."""

    def __init__(self, origins: Origins) -> None:
        self.origins = origins
        self._problems: dict[tuple[KeyPath, str], Problem] = {}

    def add(self, path: KeyPath, message: str) -> None:
        """Note a problem of the value at ``path``."""
        self._problems.setdefault((path, message), self.origins.problem(path, message))

    def add_problem(self, path: KeyPath, problem: Problem) -> None:
        """Note a problem whose place is known already."""
        self._problems.setdefault((path, problem.message), problem)

    def has(self, path: KeyPath) -> bool:
        """Whether the value at ``path`` itself is known to be wrong."""
        return any(wrong == path for wrong, _ in self._problems)

    def knows(self, path: KeyPath) -> bool:
        """Whether the value at ``path``, or something in it, is known to be wrong."""
        return any(wrong[: len(path)] == path for wrong, _ in self._problems)

    def raise_if_any(self) -> None:
        """Raise ``InvalidConfig`` with every problem, by line, those of variables last."""
        if self._problems:
            raise InvalidConfig(sorted(self._problems.values(), key=reading_order))


def reading_order(problem: Problem) -> tuple[bool, str, int, str]:
    """Where a problem comes in a list: file by file, by line, those of variables last."""
    return problem.variable is not None, problem.file or "", problem.line or 0, problem.key


def dotted(path: KeyPath) -> str:
    """Write a key path as people do: ``consumers.tts.gpus[0]``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def did_you_mean(name: str, known: Iterable[str], *, what: str) -> str:
    """Return a hint for an unknown name: the nearest known one, or all there are.

    ``what`` is the plural for the list, such as ``"consumers"``.
    """
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1)
    if nearest:
        return f"did you mean {nearest[0]}?"
    return f"known {what}: {', '.join(names)}" if names else f"there are no {what}"
