"""Landscapes from words: the image service's stand-in for a diffusion model.

A prompt is read for words that name a time of day, a place and the weather (``scene``); what it
leaves open is drawn from the seed. The picture is painted back to front: sky, land, water.
"""

from __future__ import annotations

import random

from mgpu.demo.painting.canvas import Canvas
from mgpu.demo.painting.land import paint_land
from mgpu.demo.painting.png import encode_png
from mgpu.demo.painting.scene import read_prompt
from mgpu.demo.painting.sky import paint_sky
from mgpu.demo.painting.water import paint_water


def paint(prompt: str, width: int, height: int, seed: int) -> bytes:
    """Paint ``prompt`` as a PNG of that size in pixels; same arguments, same bytes."""
    scene = read_prompt(prompt, seed)
    rng = random.Random(f"{seed}:{prompt}")  # noqa: S311 - a picture, not a secret
    canvas = Canvas(width, height, scene.palette.horizon)
    paint_sky(canvas, scene, rng)
    paint_land(canvas, scene, rng)
    if scene.water:
        paint_water(canvas, scene, rng)
    return encode_png(width, height, canvas.rows())


__all__ = ["paint"]
