"""Which requests a line of the configuration means: ``GET /queue``, ``GET,HEAD /view*``, ``* /*``.

First methods, one or several with commas, or ``*`` for every one; a blank; then a path, in which
``*`` stands for any characters, slashes too. The path is compared decoded, the query does not
count. A path that ends without ``*`` is that path alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
WHAT_A_PATTERN_IS = "must be METHOD /PATH, such as GET /queue or * /api/*"

_PATTERN = re.compile(r"(\*|[A-Z]+(?:,[A-Z]+)*) (/[^ ?#]*)")


@dataclass(frozen=True, slots=True)
class Pattern:
    """One line, taken apart. No ``methods``: every one."""

    methods: frozenset[str]
    path: str

    @property
    def expression(self) -> str:
        """A regular expression over ``METHOD /path``."""
        methods = "|".join(sorted(self.methods)) or "[A-Z]+"
        first, *others = map(re.escape, self.path.split("*"))
        if not others:
            return f"(?:{methods}) {first}"
        # What stands between two stars is best taken where it comes first: nothing to try again.
        between = "".join(f"(?>.*?{part})" for part in others[:-1])
        return f"(?:{methods}) {first}{between}.*{others[-1]}"


class Patterns:
    """Several lines, any of which a request may match."""

    def __init__(self, lines: Iterable[str]) -> None:
        expressions = [f"(?:{parse(line).expression})" for line in lines]
        self._any = re.compile("|".join(expressions), re.DOTALL) if expressions else None

    def match(self, method: str, path: str) -> bool:
        """Whether one of them means this request; ``path`` is decoded."""
        return self._any is not None and self._any.fullmatch(f"{method} {path}") is not None


def parse(line: str) -> Pattern:
    """Take a line apart; raise ``ValueError`` with what it must be."""
    found = _PATTERN.fullmatch(line)
    if found is None:
        raise ValueError(WHAT_A_PATTERN_IS)
    methods = frozenset() if found[1] == "*" else frozenset(found[1].split(","))
    if not methods <= frozenset(METHODS):
        raise ValueError(WHAT_A_PATTERN_IS)
    return Pattern(methods, found[2])
