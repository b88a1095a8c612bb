from __future__ import annotations

from mgpu.simulation import report
from mgpu.simulation.comparison import SCENARIOS, Score

OURS = Score(1.0, 4.0, 9.0, 2.0, 12.5, 0.0)
THEIRS = Score(2.0, 4.0, 7.0, 3.5, 20.0, 0.0)


def test_a_row_per_policy_and_the_optimum_where_it_is_known() -> None:
    table = report.policies_table("T", {"ours": OURS, "theirs": THEIRS}, 10.0)
    assert table.rows == (
        ("ours", "2", "12.50", "1.00", "4.00", "9.00"),
        ("theirs", "3.5", "20.00", "2.00", "4.00", "7.00"),
        ("offline optimum", "", "10.00", "", "", ""),
    )
    assert len(report.policies_table("T", {"ours": OURS}, None).rows) == 1


def test_refused_jobs_get_a_column_when_there_are_any() -> None:
    refused = Score(1.0, 4.0, 9.0, 2.0, 12.5, 3.0)
    table = report.policies_table("T", {"ours": refused}, 1.0)
    assert table.columns[-1] == "refused"
    assert [row[-1] for row in table.rows] == ["3", ""]


def test_ratios_and_their_geometric_mean() -> None:
    scores = {SCENARIOS[0]: {"ours": OURS, "x": THEIRS}, SCENARIOS[1]: {"ours": THEIRS, "x": OURS}}
    mean, p95 = report.ratio_tables(scores)
    assert mean.columns == ("scenario", "ours", "longest", "x", "ratio")
    assert mean.rows == (
        ("homelab poisson 0.3", "1.00", "9", "2.00", "0.50"),
        ("homelab poisson 0.5", "2.00", "7", "1.00", "2.00"),
        ("geometric mean", "", "", "", "1.00"),
    )
    assert p95.rows[0] == ("homelab poisson 0.3", "4.00", "9", "4.00", "1.00")
    figures = report.ratios_json(scores)
    assert figures["geometric_mean_ratios"]["mean_wait"]["x"] == 1.0
    assert figures["scenarios"]["homelab poisson 0.3"]["ours"]["loads"] == 2.0


def test_tables_become_markdown() -> None:
    table = report.Table("T", ("a", "b"), (("x", "1"),))
    text = report.document("mgpu simulate --all", [table])
    assert "`mgpu simulate --all`" in text
    assert "### T\n\n| a | b |\n| --- | ---: |\n| x | 1 |\n" in text
