import pytest

from mgpu.demo.painting.scene import Hour, Land, read_prompt


@pytest.mark.parametrize(
    ("prompt", "hour"),
    [
        ("sunrise over a valley", Hour.DAWN),
        ("a bright afternoon", Hour.DAY),
        ("Sunset!", Hour.DUSK),
        ("under the MIDNIGHT stars", Hour.NIGHT),
    ],
)
def test_words_choose_the_hour(prompt: str, hour: Hour) -> None:
    assert {read_prompt(prompt, seed).hour for seed in range(8)} == {hour}


def test_several_lands_stand_behind_each_other() -> None:
    scene = read_prompt("a city, a pine forest, and far mountains by the sea", 1)
    assert scene.lands == (Land.MOUNTAINS, Land.FOREST, Land.CITY)
    assert scene.water


def test_what_the_prompt_leaves_open_is_drawn_from_the_seed() -> None:
    scenes = [read_prompt("something", seed) for seed in range(40)]
    assert {scene.hour for scene in scenes} == set(Hour)
    assert {scene.lands[0] for scene in scenes} == set(Land)
    assert read_prompt("something", 7) == read_prompt("something", 7)


def test_weather_is_understood() -> None:
    assert read_prompt("a storm", 1).clouds > 0.6
    assert read_prompt("a clear night", 1).clouds == 0
    assert read_prompt("fog in the hills", 1).mist > 0.5
    assert read_prompt("winter", 1).snow
    assert read_prompt("northern lights", 1).aurora


def test_a_colour_tints_the_sky() -> None:
    plain, purple = read_prompt("noon", 1).palette, read_prompt("purple noon", 1).palette
    assert purple.middle.green < plain.middle.green
    assert purple.light == plain.light
