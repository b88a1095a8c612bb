"""A bar of coloured segments that fills the width it is given, two lines high.

Every segment that is there at all gets at least one cell; the rest is shared by the largest
remainder, so that the bar is always exactly full. Without colours the segments are told apart by
what they are filled with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text


@dataclass(frozen=True, slots=True)
class Part:
    """One segment: the two lines of its label, its size in any unit, and its looks."""

    label: str
    detail: str
    amount: float
    style: str
    fill: str
    """One character, used where there are no colours."""
    texture: str = " "
    """The same where there are."""


def shares(amounts: Sequence[float], cells: int) -> list[int]:
    """Whole cells in proportion to ``amounts``, ``cells`` in all; none for what is not above 0."""
    total = sum(amount for amount in amounts if amount > 0)
    if total <= 0:
        return [0] * len(amounts)
    exact = [max(0.0, amount) / total * cells for amount in amounts]
    whole = [
        max(1, int(share)) if amount > 0 else 0
        for amount, share in zip(amounts, exact, strict=True)
    ]
    while sum(whole) < cells:
        whole[max(range(len(whole)), key=lambda i: exact[i] - whole[i])] += 1
    while sum(whole) > cells:
        whole[max(range(len(whole)), key=lambda i: (whole[i] > 1, whole[i] - exact[i]))] -= 1
    return whole


class Bar:
    """Parts side by side; those of nothing are left out."""

    def __init__(self, parts: Iterable[Part]) -> None:
        self._parts = [part for part in parts if part.amount > 0]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Both lines at the full width."""
        widths = shares([part.amount for part in self._parts], options.max_width)
        colours = console.color_system is not None
        for upper in (True, False):
            line = Text(no_wrap=True, overflow="crop")
            for part, width in zip(self._parts, widths, strict=True):
                label = part.label if upper else part.detail
                if colours:
                    line.append(_fitted(label, width, part.texture), part.style)
                else:
                    line.append(_fitted(label, width - 1, part.fill) + "|" if width else "")
            yield line


def _fitted(label: str, width: int, fill: str) -> str:
    """The label in the middle, or nothing of it where it does not fit."""
    return (f" {label} " if len(label) + 2 <= width else "").center(width, fill)
