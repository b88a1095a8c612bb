"""The sky: a gradient, the glow and the disc of sun or moon, clouds, stars, northern lights."""

from __future__ import annotations

import math
import random

from mgpu.demo.painting.canvas import Canvas, Gradient, Rgb
from mgpu.demo.painting.noise import field_columns, ridge_line
from mgpu.demo.painting.scene import Hour, Palette, Scene

_GLOW_STEPS = 4096
_GLOW_REACH = 1.3
_CLOUD_EDGE = 2.6


def paint_sky(canvas: Canvas, scene: Scene, rng: random.Random) -> None:
    """Fill the whole canvas; land and water are painted over it."""
    bottom = min(canvas.height, int(canvas.height * scene.horizon) + 2)
    gradient = _gradient(scene.palette, bottom)
    light_x, light_y = scene.light_at[0] * canvas.width, scene.light_at[1] * canvas.height
    glow = _glow(scene)
    per_pixel = _GLOW_STEPS / (_GLOW_REACH * canvas.height) ** 2
    across = [(y - light_y) ** 2 * per_pixel for y in range(bottom)]
    # Far clouds look flatter and thinner than those overhead.
    thinning = [1.0 - 0.55 * (y / bottom) ** 3 for y in range(bottom)]
    threshold = 0.42 - 0.85 * scene.clouds
    lit, shaded = _cloud_colours(scene)
    clouds = field_columns(
        rng, canvas.width, bottom, (canvas.width / 2.6, canvas.height / 6.5), octaves=5
    )
    for x, field in enumerate(clouds):
        dx2 = (x - light_x) ** 2 * per_pixel
        shine = [glow[min(int(dx2 + dy2), _GLOW_STEPS - 1)] for dy2 in across]
        thick = [max(0.0, value - threshold) for value in field]
        cover = [
            min(1.0, depth * _CLOUD_EDGE) * thin
            for depth, thin in zip(thick, thinning, strict=True)
        ]
        planes = tuple(
            bytes(
                [
                    int(
                        (base + (light - base) * g) * (1.0 - a)
                        + (bright + (dark - bright) * min(1.0, d) + (light - bright) * g * 0.6) * a
                    )
                    for base, g, a, d in zip(plane, shine, cover, thick, strict=True)
                ]
            )
            for plane, light, bright, dark in zip(
                gradient.planes, scene.palette.light, lit, shaded, strict=True
            )
        )
        canvas.put_column(x, 0, bottom, planes)
    if scene.hour is not Hour.DAY:
        _paint_stars(canvas, scene, rng, bottom)
    if scene.aurora:
        _paint_aurora(canvas, rng, bottom)


def _gradient(palette: Palette, bottom: int) -> Gradient:
    bend = 0.55
    colours = []
    for y in range(bottom):
        t = y / bottom
        if t < bend:
            colours.append(palette.zenith.towards(palette.middle, t / bend))
        else:
            colours.append(palette.middle.towards(palette.horizon, (t - bend) / (1.0 - bend)))
    return Gradient(colours)


def _glow(scene: Scene) -> list[float]:
    """Light over the squared distance from its source: a disc with a soft edge, then a halo."""
    night = scene.hour is Hour.NIGHT
    radius, halo, strength = (0.045, 0.11, 0.5) if night else (0.055, 0.24, 0.8)
    table = []
    for step in range(_GLOW_STEPS):
        distance = _GLOW_REACH * math.sqrt(step / _GLOW_STEPS)
        disc = min(1.0, max(0.0, (radius - distance) / 0.006 + 0.5))
        table.append(max(disc, strength * math.exp(-max(0.0, distance - radius) / halo)))
    return table


def _cloud_colours(scene: Scene) -> tuple[Rgb, Rgb]:
    palette = scene.palette
    if scene.hour is Hour.DAY:
        return Rgb(250, 251, 253), Rgb(176, 190, 208)
    if scene.hour is Hour.NIGHT:
        return palette.horizon.times(0.9), palette.middle.times(0.8)
    return palette.horizon.towards(palette.light, 0.35), palette.middle.towards(palette.zenith, 0.5)


def _paint_stars(canvas: Canvas, scene: Scene, rng: random.Random, bottom: int) -> None:
    night = scene.hour is Hour.NIGHT
    count = canvas.width * bottom // (380 if night else 1600)
    for _ in range(count):
        x, y = rng.randrange(canvas.width), int(rng.random() ** 1.5 * bottom)
        brightness = rng.random() ** 3 * (1.0 if night else 0.6)
        hidden = max(canvas.pixel(x, y)) / (150.0 if night else 190.0)
        alpha = (0.25 + 0.75 * brightness) * max(0.0, 1.0 - hidden)
        colour = Rgb(255, 255, 255).towards(
            rng.choice((Rgb(150, 180, 255), Rgb(255, 214, 160))), rng.uniform(0.0, 0.6)
        )
        canvas.blend(x, y, colour, alpha)
        if brightness > 0.55:  # noqa: PLR2004 - the few bright ones shine
            for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                canvas.blend(x + dx, y + dy, colour, alpha * 0.45)


def _paint_aurora(canvas: Canvas, rng: random.Random, bottom: int) -> None:
    violet, green = Rgb(150, 80, 220), Rgb(70, 255, 160)
    shades = [violet.towards(green, step / 15) for step in range(16)]
    for _ in range(2):
        foot = rng.uniform(0.5, 0.75) * bottom
        path = ridge_line(rng, canvas.width, canvas.width / 3, 0.4)
        rays = ridge_line(rng, canvas.width, canvas.width / 12, 0.75)
        for x in range(canvas.width):
            low = int(foot + path[x] * bottom * 0.18)
            tall = int(bottom * (0.34 + 0.16 * rays[x]))
            strength = max(0.0, 0.3 + 0.25 * rays[x])
            for k in range(tall):
                fade = 1.0 - k / tall
                soft = min(1.0, k / 6.0)
                canvas.blend(x, low - k, shades[int(15 * fade)], strength * fade * fade * soft)
