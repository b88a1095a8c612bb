"""From words to a scene: what the picture shows, and in which colours.

A table names the words that are understood. What the prompt does not say is drawn from a random
generator seeded with prompt and seed, so that the same request always gives the same picture.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from enum import StrEnum

from mgpu.demo.painting.canvas import Rgb


class Hour(StrEnum):
    """The time of day; it chooses the palette."""

    DAWN = "dawn"
    DAY = "day"
    DUSK = "dusk"
    NIGHT = "night"


class Land(StrEnum):
    """What stands on the horizon."""

    MOUNTAINS = "mountains"
    DESERT = "desert"
    HILLS = "hills"
    FOREST = "forest"
    CITY = "city"


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of an hour. ``ambient`` is how much light falls on the land, 0 to 1."""

    zenith: Rgb
    middle: Rgb
    horizon: Rgb
    light: Rgb
    ambient: float


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture in words. Positions are shares of width and height, strengths from 0 to 1."""

    hour: Hour
    palette: Palette
    lands: tuple[Land, ...]
    """Back to front."""
    water: bool
    clouds: float
    mist: float
    snow: bool
    aurora: bool
    light_at: tuple[float, float]
    """Where the sun or the moon stands."""

    @property
    def horizon(self) -> float:
        """Where land or water begins."""
        return 0.64 if self.water else 0.7


_PALETTES = {
    Hour.DAWN: Palette(
        Rgb(62, 92, 150), Rgb(206, 152, 168), Rgb(255, 208, 158), Rgb(255, 240, 204), 0.75
    ),
    Hour.DAY: Palette(
        Rgb(34, 92, 172), Rgb(104, 166, 222), Rgb(208, 230, 242), Rgb(255, 252, 232), 1.0
    ),
    Hour.DUSK: Palette(
        Rgb(36, 30, 82), Rgb(168, 70, 108), Rgb(255, 148, 80), Rgb(255, 220, 150), 0.5
    ),
    Hour.NIGHT: Palette(Rgb(5, 8, 26), Rgb(14, 26, 62), Rgb(46, 68, 112), Rgb(236, 238, 246), 0.24),
}

_HOURS = {
    Hour.DAWN: "dawn sunrise morning early",
    Hour.DAY: "day noon midday sunny afternoon bright summer spring",
    Hour.DUSK: "dusk sunset evening twilight golden autumn",
    Hour.NIGHT: "night midnight moon moonlit moonlight stars starry dark "
    "aurora galaxy northern neon",
}
_LANDS = {
    Land.MOUNTAINS: "mountain mountains peak peaks alps alpine summit cliff cliffs fjord glacier",
    Land.DESERT: "desert dune dunes sand sahara mars canyon",
    Land.HILLS: "hill hills meadow field fields valley countryside village farm tuscany",
    Land.FOREST: "forest wood woods tree trees pine pines jungle taiga",
    Land.CITY: "city town skyline skyscraper skyscrapers street metropolis tokyo harbour harbor",
}
_WATER = (
    "sea ocean lake river water coast beach bay harbour harbor island fjord reflection ship "
    "lighthouse"
)
_CLOUDY = "cloud clouds cloudy overcast rain rainy storm stormy thunder"
_CLEAR = "clear cloudless"
_MISTY = "mist misty fog foggy haze hazy dream dreamy"
_SNOWY = "snow snowy winter ice frozen glacier arctic alps"
_TINTS = {
    "red": Rgb(214, 48, 44),
    "crimson": Rgb(190, 24, 60),
    "orange": Rgb(246, 136, 44),
    "golden": Rgb(250, 190, 84),
    "mars": Rgb(206, 104, 66),
    "emerald": Rgb(74, 178, 108),
    "teal": Rgb(44, 158, 160),
    "blue": Rgb(52, 102, 208),
    "purple": Rgb(126, 66, 176),
    "violet": Rgb(138, 78, 196),
    "pink": Rgb(240, 132, 178),
}


def read_prompt(prompt: str, seed: int) -> Scene:
    """What ``prompt`` asks for; the seed decides the rest."""
    said = re.findall(r"[a-z]+", prompt.lower())
    rng = random.Random(f"scene:{seed}:{prompt}")  # noqa: S311 - a picture, not a secret

    def says(words: str) -> bool:
        return not set(words.split()).isdisjoint(said)

    hours = [hour for hour, words in _HOURS.items() if says(words)]
    hour = hours[-1] if hours else rng.choice(list(Hour))
    water = says(_WATER)
    lands = tuple(land for land, words in _LANDS.items() if says(words))
    if not lands:
        lands = (Land.HILLS,) if water else (rng.choice(list(Land)),)
    clouds = rng.uniform(0.25, 0.5)
    if says(_CLOUDY):
        clouds = 0.7
    elif says(_CLEAR):
        clouds = 0.0
    low = hour in {Hour.DAWN, Hour.DUSK}
    return Scene(
        hour=hour,
        palette=_tinted(_PALETTES[hour], said),
        lands=lands,
        water=water,
        clouds=clouds,
        mist=0.75 if says(_MISTY) else rng.uniform(0.1, 0.3),
        snow=says(_SNOWY),
        aurora=says("aurora northern borealis"),
        light_at=(
            rng.uniform(0.18, 0.82),
            rng.uniform(0.46, 0.56) if low else rng.uniform(0.14, 0.3),
        ),
    )


def _tinted(palette: Palette, said: list[str]) -> Palette:
    for word in said:
        if tint := _TINTS.get(word):
            tint = tint.times(0.45 + 0.55 * palette.ambient)
            return Palette(
                palette.zenith.towards(tint, 0.3),
                palette.middle.towards(tint, 0.55),
                palette.horizon.towards(tint, 0.4),
                palette.light,
                palette.ambient,
            )
    return palette
