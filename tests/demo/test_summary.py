import io
from pathlib import Path

from rich.console import Console

from mgpu.core.effects import Evicted
from mgpu.core.model import Outcome
from mgpu.demo.summary import JobRecord, Waits, eviction_sentence, summarise, waits

JOBS = [
    JobRecord("image", Outcome.DONE, 0.5, Path("/runs/1/image-1.png")),
    JobRecord("image", Outcome.FAILED, 1.5),
    JobRecord("tts", Outcome.DONE, 4.0, Path("/runs/1/" + "very-" * 30 + "long.wav")),
    JobRecord("tts", Outcome.EXPIRED, 10.0),
]
EVICTIONS = [
    Evicted("tts", "image", 13_312),
    Evicted("image", "language", 9_216),
    Evicted("tts", "image", 13_312),
]


def text(width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(summarise(JOBS, loads=7, evictions=EVICTIONS, took_s=21.25), crop=False)
    return console.export_text()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def test_jobs_are_counted_by_consumer_and_outcome() -> None:
    rows = {cells(line)[0]: cells(line)[1:] for line in text().splitlines() if "│" in line}
    assert rows["image"] == ["1", "1", "0", "1.00 s", "1.50 s", "1.50 s"]
    assert rows["tts"] == ["1", "0", "1", "7.00 s", "10.00 s", "10.00 s"]
    assert rows["all"][:3] == ["2", "1", "1"]


def test_an_outcome_that_did_not_occur_has_no_column() -> None:
    heading = next(line for line in text().splitlines() if "consumer" in line)
    assert cells(heading) == [
        "consumer", "done", "failed", "expired", "mean wait", "p95", "longest",
    ]  # fmt: skip


def test_the_run_is_told_in_sentences() -> None:
    assert "2 of 4 jobs done in 21.2 s with 7 loads." in text()
    assert "There were 3 evictions" in text()


def test_evictions_are_counted_by_victim_and_target_the_most_frequent_first() -> None:
    told = text()
    assert 0 < told.index("2 x tts -> image") < told.index("1 x image -> language")


def test_every_file_stands_whole_on_a_line_of_its_own() -> None:
    for width in (60, 100):
        lines = [line.strip() for line in text(width).splitlines()]
        assert {str(job.file) for job in JOBS if job.file} <= set(lines)


def test_the_number_of_evictions_reads_well() -> None:
    assert eviction_sentence([]).startswith("There were 0 evictions")
    assert eviction_sentence(EVICTIONS[:1]).startswith("There was 1 eviction:")


def test_waits_of_many_and_of_none() -> None:
    assert waits(float(i) for i in range(1, 101)) == Waits(50.5, 95.0, 100.0)
    assert waits([2.0]) == Waits(2.0, 2.0, 2.0)
    assert waits([]) == Waits(0.0, 0.0, 0.0)
