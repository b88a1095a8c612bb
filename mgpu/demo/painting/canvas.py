"""A picture as three planes of bytes, stored column by column.

Landscapes are made of columns (sky above a ridge, ridge above water), so a column being one slice
makes filling it a single copy; that is what makes painting in plain Python quick enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Rgb(NamedTuple):
    """A colour; each channel from 0 to 255, fractions allowed until it is painted."""

    red: float
    green: float
    blue: float

    def towards(self, other: Rgb, share: float) -> Rgb:
        """The colour with ``share`` (0 to 1) of it replaced by another."""
        return Rgb(*(a + (b - a) * share for a, b in zip(self, other, strict=True)))

    def times(self, factor: float) -> Rgb:
        """Darker (below 1) or lighter."""
        return Rgb(*(min(255.0, channel * factor) for channel in self))


class Gradient:
    """One colour per row, ready to be copied into a column."""

    def __init__(self, colours: Sequence[Rgb]) -> None:
        self.planes = tuple(bytes(int(colour[i]) for colour in colours) for i in range(3))


class Canvas:
    """One colour at first; (0, 0) is the top left corner."""

    def __init__(self, width: int, height: int, background: Rgb) -> None:
        self.width = width
        self.height = height
        self.planes = tuple(bytearray([int(c)]) * (width * height) for c in background)

    def put_column(self, x: int, top: int, bottom: int, planes: Sequence[bytes]) -> None:
        """Replace the rows from ``top`` up to ``bottom`` of a column, one ``bytes`` a channel."""
        start = x * self.height
        for plane, column in zip(self.planes, planes, strict=True):
            plane[start + top : start + bottom] = column

    def put_gradient(self, x: int, top: int, gradient: Gradient) -> None:
        """Paint a column from row ``top`` to the bottom with the gradient's colours there."""
        self.put_column(x, top, self.height, [plane[top:] for plane in gradient.planes])

    def blend(self, x: int, y: int, colour: Rgb, alpha: float) -> None:
        """Paint one pixel, ``alpha`` of it (0 to 1); outside the picture nothing happens."""
        if not (0 <= x < self.width and 0 <= y < self.height):
            return
        at = x * self.height + y
        for plane, channel in zip(self.planes, colour, strict=True):
            plane[at] = int(plane[at] + (channel - plane[at]) * alpha)

    def pixel(self, x: int, y: int) -> Rgb:
        """The colour of a pixel."""
        at = x * self.height + y
        return Rgb(*(plane[at] for plane in self.planes))

    def rows(self) -> Iterator[bytes]:
        """The rows from the top, three bytes a pixel."""
        row = bytearray(3 * self.width)
        for y in range(self.height):
            for channel, plane in enumerate(self.planes):
                row[channel::3] = plane[y :: self.height]
            yield bytes(row)
