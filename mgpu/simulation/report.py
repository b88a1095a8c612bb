"""Comparisons as tables of text, for a terminal, a document or a program."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mgpu.simulation.comparison import Scenario, Score, geometric_mean, ratio


@dataclass(frozen=True, slots=True)
class Table:
    """A title, and cells as they are shown; the first column is text, the others are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """As a table of GitHub's Markdown."""
        cells = [self.columns, ("---", *["---:"] * (len(self.columns) - 1)), *self.rows]
        lines = [f"| {' | '.join(row)} |" for row in cells]
        return f"### {self.title}\n\n" + "\n".join(lines) + "\n"


def policies_table(title: str, scores: Mapping[str, Score], least_reload_s: float | None) -> Table:
    """One row per policy, and what reloading would cost at best where that is known."""
    refused = any(score.refused for score in scores.values())
    columns = ("policy", "loads", "reload s", "mean wait s", "p95 wait s", "longest wait s")
    rows = []
    for name, score in scores.items():
        row = (
            name,
            f"{score.loads:.1f}".removesuffix(".0"),
            *(
                f"{seconds:.2f}"
                for seconds in (
                    score.reload_s,
                    score.mean_wait_s,
                    score.p95_wait_s,
                    score.longest_wait_s,
                )
            ),
        )
        rows.append((*row, f"{score.refused:g}") if refused else row)
    if least_reload_s is not None:
        best = ("offline optimum", "", f"{least_reload_s:.2f}", "", "", "")
        rows.append((*best, "") if refused else best)
    return Table(title, (*columns, "refused") if refused else columns, tuple(rows))


def policies_json(scores: Mapping[str, Score], least_reload_s: float | None) -> dict[str, Any]:
    """What ``policies_table`` shows."""
    return {
        "policies": {name: asdict(score) for name, score in scores.items()},
        "offline_optimum_reload_s": least_reload_s,
    }


Scores = Mapping[Scenario, Mapping[str, Score]]
"""Per scenario, per policy. The first policy is the one that is judged."""


def ratio_tables(scores: Scores) -> tuple[Table, Table]:
    """The mean and the p95 of the first policy's waits, and their ratio to each other policy's."""
    return (
        _ratios("Mean wait, s", scores, lambda score: score.mean_wait_s),
        _ratios("p95 wait, s", scores, lambda score: score.p95_wait_s),
    )


def ratios_json(scores: Scores) -> dict[str, Any]:
    """What ``ratio_tables`` shows."""
    return {
        "scenarios": {
            scenario.name: {name: asdict(score) for name, score in row.items()}
            for scenario, row in scores.items()
        },
        "geometric_mean_ratios": {
            kind: dict(_geometric_means(scores, figure))
            for kind, figure in (
                ("mean_wait", lambda score: score.mean_wait_s),
                ("p95_wait", lambda score: score.p95_wait_s),
            )
        },
    }


def _ratios(title: str, scores: Scores, figure: Callable[[Score], float]) -> Table:
    judged, *others = next(iter(scores.values()))
    columns = ["scenario", judged, "longest"]
    for name in others:
        columns += [name, "ratio"]
    rows = []
    for scenario, row in scores.items():
        ours = figure(row[judged])
        cells = [scenario.name, f"{ours:.2f}", f"{row[judged].longest_wait_s:.0f}"]
        for name in others:
            cells += [f"{figure(row[name]):.2f}", f"{ratio(ours, figure(row[name])):.2f}"]
        rows.append(tuple(cells))
    last = ["geometric mean", "", ""]
    for _, mean in _geometric_means(scores, figure):
        last += ["", f"{mean:.2f}"]
    return Table(title, tuple(columns), (*rows, tuple(last)))


def _geometric_means(
    scores: Scores, figure: Callable[[Score], float]
) -> Iterator[tuple[str, float]]:
    judged, *others = next(iter(scores.values()))
    for name in others:
        ratios = [ratio(figure(row[judged]), figure(row[name])) for row in scores.values()]
        yield name, geometric_mean(ratios)


def document(command: str, tables: Sequence[Table]) -> str:
    """The tables as a part of a document, with the command that made them."""
    head = (
        f"## Policies compared\n\nMade by `{command}`. A ratio below 1 is in the policy's favour."
    )
    return "\n\n".join([head, *(table.markdown().rstrip() for table in tables)]) + "\n"
