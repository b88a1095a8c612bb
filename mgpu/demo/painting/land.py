"""What stands on the horizon: ridges, dunes, trees and houses, each layer nearer than the last.

A layer is a profile (the height of its upper edge at every column) and a way to colour what is
below it. Haze draws far layers towards the colour of the horizon, as air does.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from mgpu.demo.painting.canvas import Canvas, Gradient, Rgb
from mgpu.demo.painting.noise import ridge_line
from mgpu.demo.painting.scene import Hour, Land, Scene

_GROUND = {
    Land.MOUNTAINS: Rgb(70, 76, 92),
    Land.DESERT: Rgb(226, 164, 98),
    Land.HILLS: Rgb(94, 138, 62),
    Land.FOREST: Rgb(34, 72, 52),
    Land.CITY: Rgb(66, 72, 92),
}
# The widest bumps of a ridge as a share of the width, and how rough it is.
_SHAPES = {
    Land.MOUNTAINS: (0.3, 0.52),
    Land.DESERT: (0.45, 0.16),
    Land.HILLS: (0.4, 0.26),
    Land.FOREST: (0.35, 0.3),
}
_SNOW = Rgb(244, 248, 255)
_WINDOW = Rgb(255, 214, 120)


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's place: ``depth`` from 1 (far) to 0 (near), heights in rows from the top."""

    land: Land
    depth: float
    base: float
    height: float


def paint_land(canvas: Canvas, scene: Scene, rng: random.Random) -> None:
    """Paint every land of the scene, back to front."""
    painter = _Painter(canvas, scene, rng)
    for land in scene.lands:
        for layer in painter.layers(land):
            match land:
                case Land.MOUNTAINS | Land.DESERT | Land.HILLS:
                    painter.paint_ridge(layer)
                case Land.FOREST:
                    painter.paint_trees(layer)
                case Land.CITY:
                    painter.paint_houses(layer)
                case _:
                    assert_never(land)


class _Painter:
    def __init__(self, canvas: Canvas, scene: Scene, rng: random.Random) -> None:
        self._canvas = canvas
        self._scene = scene
        self._rng = rng

    def layers(self, land: Land) -> list[Layer]:
        canvas, scene = self._canvas, self._scene
        horizon = scene.horizon * canvas.height
        room = canvas.height - horizon
        shares = {Land.MOUNTAINS: 0.4, Land.CITY: 0.34, Land.FOREST: 0.2}
        tall = shares.get(land, 0.13) * canvas.height
        count = 4 if land in {Land.FOREST, Land.DESERT} else 3
        sink = 0.12 if scene.water else 0.75
        layers = []
        for i in range(count):
            near = i / (count - 1)
            grown = 1.0 - 0.55 * near if land is Land.MOUNTAINS else 0.75 + 0.35 * near
            layers.append(Layer(land, 1.0 - near, horizon + room * sink * near, tall * grown))
        return layers

    def _colours(self, layer: Layer) -> list[Rgb]:
        """The layer's colour at every row: hazier at its foot, where mist lies."""
        scene, palette = self._scene, self._scene.palette
        white = scene.snow and layer.land is Land.HILLS
        ground = _SNOW.times(0.9) if white else _GROUND[layer.land]
        near = ground.times(palette.ambient)
        near = near.towards(palette.zenith, 0.25 * (1.0 - palette.ambient))
        haze = layer.depth * (0.5 + 0.25 * scene.mist)
        top = layer.base - layer.height
        colours = []
        for y in range(self._canvas.height):
            foot = min(1.0, max(0.0, (y - top) / (2.0 * layer.height)))
            share = min(0.92, haze + scene.mist * 0.7 * foot * (0.25 + 0.75 * layer.depth))
            colours.append(near.towards(palette.horizon, share))
        return colours

    def _fill(self, profile: Sequence[float], colours: list[Rgb]) -> None:
        """Fill below the profile with one colour a row; the edge's pixels are painted in part."""
        canvas = self._canvas
        gradient = Gradient(colours)
        for x, edge in enumerate(profile):
            top = min(max(int(edge) + 1, 0), canvas.height)
            canvas.put_gradient(x, top, gradient)
            if 0 < top < canvas.height:
                canvas.blend(x, top - 1, colours[top - 1], top - edge)

    def paint_ridge(self, layer: Layer) -> None:
        cell, roughness = _SHAPES[layer.land]
        width = self._canvas.width
        line = ridge_line(self._rng, width, cell * width, roughness)
        profile = [layer.base - layer.height * (0.5 + 0.5 * height) for height in line]
        colours = self._colours(layer)
        self._fill(profile, colours)
        self._shade(layer, profile, colours)

    def _shade(self, layer: Layer, profile: list[float], colours: list[Rgb]) -> None:
        """Light the slopes that face the sun, darken the others.

        The slope at the edge is carried down the hillside at a slant, which reads as the spurs and
        gullies of a real one.
        """
        canvas, scene = self._canvas, self._scene
        width = canvas.width
        capped = layer.land is Land.MOUNTAINS
        contrast = (0.34 if capped else 0.2) * (1.0 - 0.6 * layer.depth)
        side = 1.0 if scene.light_at[0] > 0.5 else -1.0  # noqa: PLR2004 - the middle
        reach = 3 if capped else 9
        slopes = [
            side * (profile[min(x + reach, width - 1)] - profile[max(x - reach, 0)]) / (2 * reach)
            for x in range(width)
        ]
        factors = [1.0 - contrast * max(-1.0, min(1.0, -slope * 1.6)) for slope in slopes]
        caps = ridge_line(self._rng, width, width / 24, 0.6)
        snowline = layer.base - layer.height * 0.55
        snow = _SNOW.times(0.35 + 0.65 * scene.palette.ambient)
        snow = snow.towards(scene.palette.horizon, 0.35 * layer.depth + 0.1)
        if scene.snow:
            snowline = layer.base - layer.height * 0.2
        channels = tuple(zip(*colours, strict=True))
        for x, edge in enumerate(profile):
            top = min(max(int(edge) + 1, 0), canvas.height)
            end = min(canvas.height, int(layer.base + layer.height) + 1)
            if end <= top:
                continue
            lit = [factors[(x + (k * 5 >> 3)) % width] for k in range(end - top)]
            white = 0
            if capped:
                depth = snowline - edge + 0.14 * layer.height * caps[x]
                white = max(0, min(end - top, int(depth)))
            if white:
                canvas.blend(x, top - 1, snow, top - edge)
            planes = tuple(
                bytes(
                    [min(255, int(snow_channel * light)) for light in lit[:white]]
                    + [
                        min(255, int(colour * light))
                        for colour, light in zip(
                            channel[top + white : end], lit[white:], strict=True
                        )
                    ]
                )
                for channel, snow_channel in zip(channels, snow, strict=True)
            )
            canvas.put_column(x, top, end, planes)

    def paint_trees(self, layer: Layer) -> None:
        canvas, scene, rng = self._canvas, self._scene, self._rng
        cell, roughness = _SHAPES[layer.land]
        line = ridge_line(rng, canvas.width, cell * canvas.width, roughness)
        ground = [layer.base - layer.height * 0.35 * height for height in line]
        profile = ground[:]
        size = layer.height * (0.95 - 0.45 * layer.depth)
        x = -size * 0.2
        while x < canvas.width + size * 0.2:
            tall = size * rng.uniform(0.55, 1.1)
            half = tall * rng.uniform(0.17, 0.25)
            for column in range(max(0, int(x - half)), min(canvas.width, int(x + half) + 1)):
                rise = 1.0 - abs(column - x) / half
                branches = 0.07 * ((rise * 7.0) % 1.0)
                profile[column] = min(profile[column], ground[column] - tall * (rise - branches))
            x += half * rng.uniform(0.5, 1.5)
        colours = self._colours(layer)
        if scene.snow:
            colours = [
                colour.towards(_SNOW.times(scene.palette.ambient), 0.3) for colour in colours
            ]
        self._fill(profile, colours)

    def paint_houses(self, layer: Layer) -> None:
        canvas, scene, rng = self._canvas, self._scene, self._rng
        profile = [layer.base] * canvas.width
        lights: list[tuple[int, int]] = []
        unit = canvas.width / 512
        glass = max(1, round(2 * unit))
        x = 0
        while x < canvas.width:
            wide = int(rng.uniform(14, 38) * unit * (1.15 - 0.4 * layer.depth)) + 4
            middle = 1.0 - abs(2.0 * x / canvas.width - 1.0)
            roof = int(layer.base - layer.height * rng.uniform(0.25, 1.0) * (0.45 + 0.55 * middle))
            right = min(canvas.width, x + wide)
            profile[x:right] = [float(roof)] * (right - x)
            if rng.random() < 0.25:  # noqa: PLR2004 - one in four carries a mast
                profile[min(x + wide // 2, canvas.width - 1)] = roof - 0.12 * layer.height
            lights += [
                (column, row)
                for column in range(x + 2 * glass, right - 2 * glass, 3 * glass)
                for row in range(roof + 3 * glass, canvas.height, 4 * glass)
                if rng.random() < 0.38  # noqa: PLR2004 - the share of lit windows
            ]
            x = right + (rng.randrange(3) == 0)
        colours = self._colours(layer)
        self._fill(profile, colours)
        bright = {Hour.NIGHT: 0.9, Hour.DUSK: 0.8, Hour.DAWN: 0.4, Hour.DAY: 0.22}[scene.hour]
        colour = _WINDOW if scene.hour is not Hour.DAY else Rgb(210, 228, 244)
        for column, row in lights:
            alpha = bright * (1.0 - 0.55 * layer.depth) * rng.uniform(0.45, 1.0)
            for dx in range(glass):
                for dy in range(glass + 1):
                    canvas.blend(column + dx, row + dy, colour, alpha)
