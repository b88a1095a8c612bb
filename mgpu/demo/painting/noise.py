"""Random shapes without jumps: value noise, summed over octaves (fractal noise)."""

from __future__ import annotations

import random
from collections.abc import Iterator


def _smooth(t: float) -> float:
    return t * t * (3.0 - 2.0 * t)


def _octave(rng: random.Random, length: int, cell: float) -> list[float]:
    knots = [rng.uniform(-1.0, 1.0) for _ in range(int(length / cell) + 2)]
    line = []
    for x in range(length):
        i, t = divmod(x / cell, 1.0)
        left = knots[int(i)]
        line.append(left + (knots[int(i) + 1] - left) * _smooth(t))
    return line


def ridge_line(rng: random.Random, length: int, cell: float, roughness: float) -> list[float]:
    """Heights of about -1 to 1 along a line.

    ``cell`` is the width of the largest bumps in pixels; ``roughness`` is how much each octave of
    half the width adds to the one before (0: rolling, 0.6: rocky).
    """
    line = [0.0] * length
    weight = total = 1.0
    while cell >= 2.0 and weight > 0.02:  # noqa: PLR2004 - finer than that, nobody sees it
        octave = _octave(rng, length, cell)
        line = [a + weight * b for a, b in zip(line, octave, strict=True)]
        cell /= 2.0
        weight *= roughness
        total += weight
    return [height / total * 1.6 for height in line]


def field_columns(
    rng: random.Random, width: int, height: int, cell: tuple[float, float], octaves: int
) -> Iterator[list[float]]:
    """Yield a field of values from -1 to 1 column by column; ``cell`` as (width, height)."""
    layers = []
    weight, total = 1.0, 0.0
    for octave in range(octaves):
        cell_x, cell_y = cell[0] / 2**octave, cell[1] / 2**octave
        rows = int(height / cell_y) + 2
        knots = [
            [rng.uniform(-weight, weight) for _ in range(rows)]
            for _ in range(int(width / cell_x) + 2)
        ]
        steps = [(int(y / cell_y), _smooth(y / cell_y % 1.0)) for y in range(height)]
        layers.append((cell_x, knots, steps))
        total += weight
        weight *= 0.55
    for x in range(width):
        column = [0.0] * height
        for cell_x, knots, steps in layers:
            i, t = divmod(x / cell_x, 1.0)
            t = _smooth(t)
            left, right = knots[int(i)], knots[int(i) + 1]
            line = [(a + (b - a) * t) / total for a, b in zip(left, right, strict=True)]
            column = [
                value + line[j] + (line[j + 1] - line[j]) * u
                for value, (j, u) in zip(column, steps, strict=True)
            ]
        yield column
