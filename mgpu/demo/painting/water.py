"""Water: the picture above it upside down, broken by ripples, with the light's path on it."""

from __future__ import annotations

import random

from mgpu.demo.painting.canvas import Canvas
from mgpu.demo.painting.noise import field_columns
from mgpu.demo.painting.scene import Scene

_REFLECTED = 0.68


def paint_water(canvas: Canvas, scene: Scene, rng: random.Random) -> None:
    """Cover everything below the shore."""
    shore = int(canvas.height * (scene.horizon + 0.05))
    deep = scene.palette.zenith.towards(scene.palette.middle, 0.35)
    light_x = scene.light_at[0] * canvas.width
    rows = canvas.height - shore
    # Ripples grow towards the viewer.
    swell = [2.0 + 0.16 * k for k in range(rows)]
    ripples = field_columns(rng, canvas.width, rows, (canvas.width / 9, 7.0), octaves=3)
    for x, field in enumerate(ripples):
        sources = [
            max(0, min(shore - 1, int(shore - 1 - 1.15 * k - wave * height)))
            for k, (wave, height) in enumerate(zip(field, swell, strict=True))
        ]
        near = abs(x - light_x) / canvas.width
        path = [
            max(0.0, wave - 0.12 - 7.0 * near / (0.6 + k / rows)) for k, wave in enumerate(field)
        ]
        start = x * canvas.height
        planes = tuple(
            bytes(
                [
                    min(
                        255,
                        max(
                            0,
                            int(
                                tone
                                + (plane[start + y] - tone) * _REFLECTED
                                + 12.0 * wave
                                + light * 1.6 * glint
                            ),
                        ),
                    )
                    for y, wave, glint in zip(sources, field, path, strict=True)
                ]
            )
            for plane, tone, light in zip(canvas.planes, deep, scene.palette.light, strict=True)
        )
        canvas.put_column(x, shore, canvas.height, planes)
