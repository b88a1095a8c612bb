from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mgpu.core.model import LockMode
from mgpu.errors import ConfigError
from mgpu.simulation import traces
from mgpu.simulation.workload import MIXES, NO_RULES, Arrivals, Rules, make_trace
from tests.simulation.tiny import service, trace

HEADER = json.dumps(
    {
        "mgpu_trace": 1,
        "total_mib": [1000],
        "cushion_mib": 0,
        "services": {"a": {"footprint_mib": 9}},
    }
)
JOB = '{"at_s": 1.0, "consumer": "a", "service_s": 2.0}'


def file_of(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_what_is_written_is_read_back_unchanged(tmp_path: Path) -> None:
    made = make_trace(MIXES["homelab"], Arrivals.BURSTS, utilisation=0.5, jobs=50, seed=1)
    two = trace(
        (0.0, "a", 1.0),
        (2.5, "b", 0.125),
        total_mib=(1000, 2000),
        services=(service("a", gpus=(0, 1)), service("b", load_s=0.0)),
        resident=("b",),
    )
    rules = Rules(
        concurrency=4,
        can_coexist_with=frozenset({"b", "*"}),
        residual_mib=100,
        can_load=False,
        can_unload=False,
        pinned=True,
        idle_unload_s=60.0,
    )
    ruled = trace(
        (0.0, "a", 1.0),
        services=(
            service("a", rules=rules),
            service("b", footprint_mib=0, load_s=0.0, rules=Rules(vram_managed=True)),
        ),
    )
    for what in (made, two, replace(ruled, lock=LockMode.SHARED)):
        traces.write(tmp_path / "trace.jsonl", what)
        recording = traces.read(tmp_path / "trace.jsonl")
        assert recording.trace == what
        assert recording.unknown == ()


def test_a_trace_from_before_there_were_rules_has_none(tmp_path: Path) -> None:
    read = traces.read(file_of(tmp_path, HEADER, JOB))
    assert read.trace.services["a"].rules == NO_RULES
    assert read.trace.lock is LockMode.EXCLUSIVE


def test_who_is_loaded_by_its_first_job_has_no_load_to_be_measured(tmp_path: Path) -> None:
    services = {"a": {"footprint_mib": 9, "can_load": False}}
    assert traces.read(file_of(tmp_path, header(services=services), JOB)).unknown == ()


def test_jobs_are_sorted_by_arrival_and_times_averaged(tmp_path: Path) -> None:
    path = file_of(
        tmp_path,
        HEADER,
        JOB,
        '{"consumer": "a", "load_s": 2.0}',
        "",
        '{"at_s": 0, "consumer": "a", "service_s": 5, "priority": 3}',
        '{"consumer": "a", "load_s": 4}',
        '{"consumer": "a", "unload_s": 0.5}',
    )
    read = traces.read(path)
    assert [(a.at_s, a.priority) for a in read.trace.arrivals] == [(0.0, 3), (1.0, 0)]
    assert (read.trace.services["a"].load_s, read.trace.services["a"].unload_s) == (3.0, 0.5)
    assert read.unknown == ()


def test_a_service_whose_load_was_never_measured_is_named(tmp_path: Path) -> None:
    read = traces.read(file_of(tmp_path, HEADER, JOB))
    assert read.unknown == ("a",)
    assert read.trace.services["a"].load_s == 0.0


def unmeasured(tmp_path: Path, entry: dict[str, object], *lines: str) -> tuple[str, ...]:
    read = traces.read(file_of(tmp_path, header(services={"a": entry}), JOB, *lines))
    return read.unmeasured


def test_the_footprint_that_was_measured_last_counts(tmp_path: Path) -> None:
    lines = [f'{{"consumer": "a", "footprint_mib": {mib}}}' for mib in (700, 800, 750)]
    read = traces.read(file_of(tmp_path, HEADER, lines[0], JOB, *lines[1:]))
    assert read.trace.services["a"].footprint_mib == 750
    assert read.unmeasured == ()


@pytest.mark.parametrize("footprint_mib", [0, None])
def test_a_service_whose_footprint_was_never_measured_is_named(
    tmp_path: Path, footprint_mib: int | None
) -> None:
    entry: dict[str, object] = {"footprint_mib": footprint_mib}
    assert unmeasured(tmp_path, entry) == ("a",)
    assert unmeasured(tmp_path, entry, '{"consumer": "a", "footprint_mib": 700}') == ()


def test_one_that_manages_its_memory_itself_need_not_be_measured(tmp_path: Path) -> None:
    assert unmeasured(tmp_path, {"footprint_mib": 0, "vram_managed": True}) == ()
    # So it stood in traces from before there were rules.
    assert unmeasured(tmp_path, {"footprint_mib": 0, "load_s": 0.0}) == ()


def header(**changes: object) -> str:
    return json.dumps({**json.loads(HEADER), **changes})


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], ":1: the file is empty"),
        ([JOB], ":1: not the header"),
        (["[]"], ":1: not a JSON object"),
        ([header(mgpu_trace=2), JOB], ":1: not the header of a trace of version 1"),
        ([header(total_mib=[]), JOB], ":1: total_mib: "),
        ([header(cushion_mib=-1), JOB], ":1: cushion_mib: "),
        ([header(colour="red"), JOB], ":1: colour: "),
        ([header(resident=["b"]), JOB], ":1: resident: there is no service b"),
        ([header(services={"a": {"footprint_mib": "9"}}), JOB], ":1: services.a.footprint_mib: "),
        ([header(services={"a": {"footprint_mib": 9, "gpus": [1]}}), JOB], "no such GPU: .1."),
        ([header(services={"a": {"footprint_mib": 9, "gpus": []}}), JOB], "names no GPU"),
        ([header(lock="none"), JOB], ":1: lock: "),
        ([header(services={"a": {"footprint_mib": 9, "concurrency": 0}}), JOB], "a.concurrency: "),
        ([HEADER], ": there is no job in it"),
        ([HEADER, "{"], ":2: not JSON"),
        ([HEADER, JOB, "", "null"], ":4: not a JSON object"),
        ([HEADER, JOB.replace('"a"', '"b"')], ":2: consumer: the header has no service b"),
        ([HEADER, JOB.replace("1.0", "-1.0")], ":2: at_s: "),
        ([HEADER, JOB.replace("1.0", "NaN")], ":2: not JSON: NaN"),
        ([HEADER, JOB.replace("1.0", "1e999")], ":2: at_s: "),
        ([HEADER, JOB.replace("1.0", "true")], ":2: at_s: "),
        ([HEADER, JOB.replace("service_s", "servce_s")], ":2: s"),
        ([HEADER, JOB, '{"consumer": "a", "load_s": "long"}'], ":3: load_s: "),
        ([HEADER, JOB, '{"consumer": "a", "unload_s": 1, "x": 1}'], ":3: x: "),
        ([HEADER, JOB, '{"consumer": "a", "footprint_mib": null}'], ":3: footprint_mib: "),
        ([HEADER, "[" * 100_000], ":2: not JSON"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    path = file_of(tmp_path, *lines)
    with pytest.raises(ConfigError, match=message) as refused:
        traces.read(path)
    assert str(refused.value).startswith(str(path))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.jsonl: cannot be read"):
        traces.read(tmp_path / "nowhere.jsonl")
    (tmp_path / "trace.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        traces.read(tmp_path / "trace.jsonl")
