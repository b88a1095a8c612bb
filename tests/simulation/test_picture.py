from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from mgpu.core.model import Order
from mgpu.simulation import picture
from mgpu.simulation.outcome import Result
from mgpu.simulation.workload import MIXES, Arrivals, Trace, make_trace
from tests.simulation.tiny import ABA, replay, service, trace

SVG = "{http://www.w3.org/2000/svg}"


def drawn(what: Trace, title: str = "T") -> ET.Element:
    return ET.fromstring(picture.draw(what, replay(what, Order.RESIDENT_FIRST, lanes=True), title))


def classes(element: ET.Element) -> list[str]:
    return [rect.get("class", "") for rect in element.iter(f"{SVG}rect")]


def test_there_is_one_lane_per_consumer_with_what_it_did() -> None:
    lanes = drawn(trace(*ABA)).findall(f"{SVG}g[@class='lane']")
    assert [lane.get("data-consumer") for lane in lanes] == ["a", "b"]
    a, b = lanes
    # Both jobs of a wait at first, then one: two bars.
    assert (
        classes(a) == ["track", "loading", "computing", "computing", "unloading"] + ["waiting"] * 3
    )
    assert classes(b) == ["track", "loading", "computing", "waiting"]


def test_bars_stand_where_the_time_is() -> None:
    root = drawn(trace(*ABA))
    [_, b] = root.findall(f"{SVG}g[@class='lane']")
    track, loading, computing, _ = b.findall(f"{SVG}rect")
    begin, width = float(track.get("x", "")), float(track.get("width", ""))
    # b loads from 5 to 7 s of 8 and computes until the end.
    assert float(loading.get("x", "")) == pytest.approx(begin + width * 5 / 8, abs=0.2)
    assert float(loading.get("width", "")) == pytest.approx(width * 2 / 8, abs=0.2)
    assert float(computing.get("width", "")) == pytest.approx(width * 1 / 8, abs=0.2)
    assert loading.findtext(f"{SVG}title") == "loading, 5.00 to 7.00 s"


def test_the_legend_explains_every_colour_in_light_and_dark() -> None:
    root = drawn(trace(*ABA))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    style = root.findtext(f"{SVG}style") or ""
    light, dark = style.split("prefers-color-scheme: dark")
    for name in ("loading", "resident", "computing", "unloading", "waiting"):
        assert name in texts
        assert f".{name} {{" in light
        assert f".{name} {{" in dark


def test_names_cannot_break_out_of_the_picture() -> None:
    evil = '<script>&"\x1b]]>'
    root = drawn(trace((0.0, evil, 1.0), services=(service(evil),)), title=evil)
    [lane] = root.findall(f"{SVG}g")
    assert lane.get("data-consumer") == '<script>&"\N{REPLACEMENT CHARACTER}]]>'
    assert root.find(f".//{SVG}script") is None


def test_a_long_run_stays_within_a_width_that_can_be_shown() -> None:
    what = make_trace(MIXES["eight"], Arrivals.POISSON, utilisation=0.05, jobs=300, seed=1)
    assert float(drawn(what).get("width", "")) <= picture.WIDEST_PX + 200


def test_nothing_at_all_can_be_drawn() -> None:
    assert ET.fromstring(picture.draw(trace(), Result(), "empty")).tag == f"{SVG}svg"
