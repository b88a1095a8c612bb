"""A GPU over time as an SVG: one lane per consumer, what it did, and who waited for it.

Colours follow the viewer's light or dark scheme. Hovering shows what a bar is and when it was.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from xml.etree import ElementTree as ET

from mgpu.simulation.outcome import Activity, Interval, Result
from mgpu.simulation.workload import Trace

CHARACTER_PX = 7.5
"""About the width of one."""
LANE_PX = 24
WAITS_PX = 6
GAP_PX = 10
TOP_PX = 64
BOTTOM_PX = 30
PX_PER_S = 4.0
NARROWEST_PX, WIDEST_PX = 900, 12_000
TICKS = 12
"""About so many per picture of the narrowest width."""

_Box = tuple[float, float, float, float]
"""x, y, width, height."""

_STYLE = """
svg { background: #ffffff; font: 12px system-ui, sans-serif; }
text { fill: #1f2328; } .title { font-weight: 600; font-size: 14px; }
.grid { stroke: #d0d7de; stroke-width: 1; } .track { fill: #f3f5f7; }
.loading { fill: #d97706; } .resident { fill: #a9c7e8; } .computing { fill: #1a7f37; }
.unloading { fill: #8250df; } .waiting { fill: #cf222e; }
@media (prefers-color-scheme: dark) {
  svg { background: #0d1117; } text { fill: #e6edf3; }
  .grid { stroke: #30363d; } .track { fill: #161b22; }
  .loading { fill: #f0a030; } .resident { fill: #2f5680; } .computing { fill: #3fb950; }
  .unloading { fill: #a78bfa; } .waiting { fill: #f85149; }
}
"""


def draw(trace: Trace, result: Result, title: str) -> str:
    """The picture of a run, which must have been made with its lanes."""
    start_s = trace.arrivals[0].at_s if trace.arrivals else 0.0
    span_s = max(result.ended_s - start_s, 1e-9)
    time_px = min(max(span_s * PX_PER_S, NARROWEST_PX), WIDEST_PX)
    return _Picture(trace, result, start_s, time_px / span_s).draw(title)


class _Picture:
    def __init__(self, trace: Trace, result: Result, start_s: float, px_per_s: float) -> None:
        self._trace = trace
        self._result = result
        self._start_s = start_s
        self._px_per_s = px_per_s
        longest = max(map(len, trace.services), default=0)
        self._labels_px = 2 * GAP_PX + longest * CHARACTER_PX
        self._height_px = TOP_PX + len(trace.services) * (LANE_PX + WAITS_PX + GAP_PX) + BOTTOM_PX
        self._width_px = self._x(result.ended_s) + GAP_PX
        size = f"0 0 {self._width_px:.0f} {self._height_px}"
        self._svg = ET.Element(
            "svg",
            xmlns="http://www.w3.org/2000/svg",
            viewBox=size,
            width=f"{self._width_px:.0f}",
            height=str(self._height_px),
            role="img",
        )

    def draw(self, title: str) -> str:
        ET.SubElement(self._svg, "title").text = _legal(title)
        ET.SubElement(self._svg, "style").text = _STYLE
        self._text(GAP_PX, 22, title, "title")
        self._legend()
        self._axis()
        for number, name in enumerate(self._trace.services):
            self._lane(name, TOP_PX + number * (LANE_PX + WAITS_PX + GAP_PX))
        ET.indent(self._svg)
        return ET.tostring(self._svg, encoding="unicode") + "\n"

    def _legend(self) -> None:
        x = float(GAP_PX)
        for name in [*(activity.value for activity in Activity), "waiting"]:
            self._rect(self._svg, (x, 36, 12, 12), name)
            self._text(x + 17, 46, name)
            x += 100

    def _axis(self) -> None:
        bottom_px = self._height_px - BOTTOM_PX
        end_s = self._result.ended_s
        step_s = _round_step(NARROWEST_PX / TICKS / self._px_per_s)
        for tick in range(int((end_s - self._start_s) / step_s) + 1):
            at_s = self._start_s + tick * step_s
            x = f"{self._x(at_s):.1f}"
            ET.SubElement(
                self._svg,
                "line",
                {"class": "grid", "x1": x, "x2": x, "y1": str(TOP_PX - 6), "y2": str(bottom_px)},
            )
            self._text(self._x(at_s), bottom_px + 16, f"{at_s - self._start_s:g} s", middle=True)

    def _lane(self, name: str, y: float) -> None:
        lane = ET.SubElement(self._svg, "g", {"class": "lane", "data-consumer": _legal(name)})
        self._text(GAP_PX, y + LANE_PX / 2 + 4, name, parent=lane)
        whole_px = self._x(self._result.ended_s) - self._labels_px
        self._rect(lane, (self._labels_px, y, whole_px, LANE_PX), "track")
        for interval in self._result.lanes.get(name, ()):
            self._bar(lane, interval, y)
        waits = list(_waits(self._result, name))
        most = max((count for _, _, count in waits), default=1)
        for start_s, end_s, count in waits:
            box = self._box(start_s, end_s, y + LANE_PX + 1, WAITS_PX)
            what = f"{count} waiting, {self._when(start_s, end_s)}"
            self._rect(lane, box, "waiting", what, opacity=0.25 + 0.75 * count / most)

    def _bar(self, lane: ET.Element, interval: Interval, y: float) -> None:
        box = self._box(interval.start_s, interval.end_s, y, LANE_PX)
        what = f"{interval.activity}, {self._when(interval.start_s, interval.end_s)}"
        self._rect(lane, box, interval.activity.value, what)

    def _box(self, start_s: float, end_s: float, y: float, height: float) -> _Box:
        return self._x(start_s), y, max(0.5, (end_s - start_s) * self._px_per_s), height

    def _when(self, start_s: float, end_s: float) -> str:
        return f"{start_s - self._start_s:.2f} to {end_s - self._start_s:.2f} s"

    def _x(self, at_s: float) -> float:
        return self._labels_px + (at_s - self._start_s) * self._px_per_s

    def _text(  # noqa: PLR0913 - what a text is
        self,
        x: float,
        y: float,
        text: str,
        style: str = "",
        *,
        middle: bool = False,
        parent: ET.Element | None = None,
    ) -> None:
        attributes = {"x": f"{x:.1f}", "y": f"{y:.1f}"}
        if style:
            attributes["class"] = style
        if middle:
            attributes["text-anchor"] = "middle"
        element = ET.SubElement(self._svg if parent is None else parent, "text", attributes)
        element.text = _legal(text)

    def _rect(
        self,
        parent: ET.Element,
        box: _Box,
        style: str,
        what: str = "",
        *,
        opacity: float = 1.0,
    ) -> None:
        x, y, width, height = (f"{number:.1f}" for number in box)
        attributes = {"class": style, "x": x, "y": y, "width": width, "height": height}
        if opacity < 1.0:
            attributes["opacity"] = f"{opacity:.2f}"
        element = ET.SubElement(parent, "rect", attributes)
        if what:
            ET.SubElement(element, "title").text = what


def _waits(result: Result, consumer: str) -> Iterator[tuple[float, float, int]]:
    """From when to when how many jobs waited for a consumer."""
    changes: list[tuple[float, int]] = []
    for run in result.runs:
        if run.consumer == consumer and run.wait_s > 0:
            changes += [(run.arrived_s, +1), (run.started_s, -1)]
    changes.sort()
    waiting = 0
    for (at_s, change), (next_s, _) in itertools.pairwise(changes):
        waiting += change
        if waiting and next_s > at_s:
            yield at_s, next_s, waiting


def _round_step(least_s: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, 50 … seconds that is no less."""
    power = 10.0 ** math.floor(math.log10(least_s))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least_s)


def _legal(text: str) -> str:
    """``text`` without characters that XML has no place for."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
