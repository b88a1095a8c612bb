import pytest

from mgpu.demo.painting import paint
from tests.support.png import Picture, read_png


def picture(prompt: str, seed: int = 1) -> Picture:
    return read_png(paint(prompt, 96, 72, seed))


def brightness(rows: tuple[bytes, ...]) -> float:
    return sum(map(sum, rows)) / sum(map(len, rows))


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "snowy mountains at dawn",
        "desert dunes under a red sunset",
        "misty pine forest",
        "aurora over a frozen lake",
        "city by the sea at night",
        "green hills on a cloudy day",
        "mountains, a forest and a town by a river",
    ],
)
def test_any_prompt_gives_a_whole_picture_with_something_on_it(prompt: str) -> None:
    seen = picture(prompt)
    assert seen.size == (96, 72)
    assert len(set(seen.rows)) > 40


@pytest.mark.parametrize("size", [(64, 64), (64, 200), (201, 65)])
def test_odd_sizes_are_painted_too(size: tuple[int, int]) -> None:
    assert read_png(paint("stormy sea and a city", *size, 3)).size == size


def test_a_night_is_darker_than_a_day() -> None:
    night, day = picture("hills at night"), picture("hills at noon")
    assert brightness(night.rows) * 2 < brightness(day.rows)


def test_water_mirrors_the_sky_so_it_is_not_land() -> None:
    lake, plain = picture("hills and a lake at noon"), picture("hills at noon")
    blue = [sum(row[2::3]) - sum(row[1::3]) for row in (lake.rows[-6], plain.rows[-6])]
    assert blue[0] > blue[1]


def test_the_picture_follows_prompt_and_seed_alone() -> None:
    assert picture("forest", 1) == picture("forest", 1)
    assert picture("forest", 1) != picture("forest", 2)
    assert picture("forest", 1) != picture("a forest", 1)
