import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mgpu.cli.bar import Bar, Part, shares


def drawn(parts: list[Part], width: int, *, colours: bool) -> list[str]:
    console = Console(
        width=width,
        file=io.StringIO(),
        record=True,
        force_terminal=colours,
        color_system="standard" if colours else None,
    )
    console.print(Bar(parts))
    return console.export_text().splitlines()


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20), st.integers(20, 200))
def test_a_bar_is_exactly_full_and_nobody_is_left_out(amounts: list[float], cells: int) -> None:
    whole = shares(amounts, cells)
    assert sum(whole) == (cells if sum(amounts) > 0 else 0)
    for amount, width in zip(amounts, whole, strict=True):
        assert (width > 0) == (amount > 0)


def test_shares_are_in_proportion() -> None:
    assert shares([13, 3, 8], 24) == [13, 3, 8]


@pytest.mark.parametrize("colours", [True, False])
def test_labels_stand_where_they_fit(colours: bool) -> None:
    parts = [
        Part("image", "13.0 GiB", 30, "black on cyan", "="),
        Part("transcription", "0.1 GiB", 2, "black on red", "="),
        Part("nothing", "0.0 GiB", 0, "black on red", "="),
    ]
    upper, lower = drawn(parts, 40, colours=colours)
    assert "image" in upper
    assert "13.0 GiB" in lower
    assert "transcription" not in upper
    assert "nothing" not in upper


def test_without_colours_the_parts_are_told_apart_by_their_fill() -> None:
    parts = [Part("image", "", 20, "on cyan", "="), Part("free", "", 20, "on black", ".")]
    upper, _ = drawn(parts, 40, colours=False)
    assert upper.replace("=", "").replace(".", "") == " image | free |"
    assert [len(half) for half in upper.split("|")] == [19, 19, 0]
