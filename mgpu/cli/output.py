"""Where text goes: results to standard output, the rest to standard error.

Text from outside is shown as it is, without markup and without control characters: a broker must
not be able to steer the terminal.
"""

from __future__ import annotations

import sys

from rich.console import Console
from rich.text import Text

PIPED_COLUMNS = 160


def console(*, stderr: bool = False) -> Console:
    """A console of the moment; one that is no terminal gets wide, plain lines."""
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, highlight=False, width=None if terminal else PIPED_COLUMNS)


def say(line: str, style: str = "") -> None:
    """Print one line of result, however long."""
    console().print(Text(plain(line), style), soft_wrap=True)


def complain(line: str) -> None:
    """Print one line of error, however long."""
    console(stderr=True).print(Text(f"mgpu: {plain(line)}", "red"), soft_wrap=True)


def plain(text: str) -> str:
    """``text`` with every character that is not printable replaced."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )
