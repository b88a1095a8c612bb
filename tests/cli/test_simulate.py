"""``mgpu simulate`` as a user types it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from mgpu.simulation import traces
from mgpu.simulation.workload import Rules
from tests.simulation.tiny import ABA, service, trace

Mgpu = Callable[..., Awaitable[Any]]

SMALL = ("--jobs", "30", "--workload", "tight")


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    traces.write(path, trace(*ABA))
    return path


def rows(stdout: str) -> dict[str, list[str]]:
    """The numbers of each policy, by its name."""
    lines = [line.rstrip() for line in stdout.splitlines()]
    [head] = [number for number, line in enumerate(lines) if line.startswith("policy ")]
    table = [line.split("  ") for line in lines[head + 1 :] if line]
    return {row[0]: [cell.strip() for cell in row[1:] if cell.strip()] for row in table}


def forget_a_load(path: Path) -> None:
    path.write_text(path.read_text().replace('"load_s": 2.0', '"load_s": null', 1))


def forget_a_footprint(path: Path) -> None:
    path.write_text(path.read_text().replace('"footprint_mib": 600', '"footprint_mib": null', 1))


def files_in(directory: Path) -> list[Path]:
    return list(directory.iterdir())


async def test_a_recorded_trace_is_replayed_under_every_policy(mgpu: Mgpu, recorded: Path) -> None:
    result = await mgpu("simulate", str(recorded))

    assert result.exit_code == 0
    shown = rows(result.stdout)
    assert shown["strict"] == ["3", "8.00", "5.50", "9.00", "9.00"]
    assert shown["resident-first"] == ["2", "5.00", "3.50", "6.50", "6.50"]
    assert shown["eager"] == ["2", "5.00", "3.50", "6.50", "6.50"]
    assert shown["never loads"] == ["0", "0.00", "0.50", "1.00", "1.00"]
    assert "offline optimum" not in shown


async def test_a_backlog_has_an_optimum(mgpu: Mgpu) -> None:
    result = await mgpu("simulate", *SMALL, "--arrivals", "backlog", "--json")

    figures = json.loads(result.stdout)
    least_s = figures["offline_optimum_reload_s"]
    assert least_s > 0
    assert all(
        score["reload_s"] >= least_s
        for name, score in figures["policies"].items()
        if name != "never loads"
    )


async def test_the_same_seed_gives_the_same_figures(mgpu: Mgpu) -> None:
    command = ("simulate", *SMALL, "--arrivals", "bursts", "--json", "--seed")
    first, again, other = [(await mgpu(*command, seed)).stdout for seed in ("1", "1", "2")]
    assert first == again != other


async def test_loads_that_share_their_bandwidth_take_longer(mgpu: Mgpu) -> None:
    command = ("simulate", *SMALL, "--arrivals", "bursts", "--json")
    alone = json.loads((await mgpu(*command)).stdout)["policies"]["eager"]
    shared = json.loads((await mgpu(*command, "--shared-bandwidth")).stdout)["policies"]["eager"]
    assert shared["mean_wait_s"] > alone["mean_wait_s"]


async def test_settings_are_tried_one_against_the_other(mgpu: Mgpu, recorded: Path) -> None:
    result = await mgpu(
        "simulate", str(recorded),
        "--set", "scheduler.order=arrival",
        "--set", "scheduler.max_overtake_s=1", "--set", "scheduler.max_overtake_s=60",
        "--set", "consumers.a.footprint_mib=100",
    )  # fmt: skip

    assert result.exit_code == 0
    tried = [name for name in rows(result.stdout) if name.startswith("arrival+lru")]
    assert any(name.endswith("+max_overtake_s=1.0") for name in tried)
    assert any(name.endswith("+max_overtake_s=60.0") for name in tried)
    # Now both fit, and nothing is loaded twice.
    assert rows(result.stdout)["strict"][0] == "2"


async def test_a_picture_is_drawn_of_the_policy_asked_for(
    mgpu: Mgpu, recorded: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "gpu.svg"
    result = await mgpu("simulate", str(recorded), "--svg", str(picture), "--policy", "eager")

    assert result.exit_code == 0
    root = ET.fromstring(picture.read_text())
    svg = "{http://www.w3.org/2000/svg}"
    assert (root.findtext(f"{svg}title") or "").startswith("eager: ")
    assert len(root.findall(f"{svg}g[@class='lane']")) == 2


async def test_a_service_that_was_never_seen_loading_is_pointed_out(
    mgpu: Mgpu, recorded: Path
) -> None:
    forget_a_load(recorded)
    result = await mgpu("simulate", str(recorded))
    assert result.exit_code == 0
    assert "no load of a was measured" in result.stderr


async def test_a_service_that_was_never_measured_is_pointed_out_until_its_footprint_is_given(
    mgpu: Mgpu, recorded: Path
) -> None:
    forget_a_footprint(recorded)
    result = await mgpu("simulate", str(recorded))
    assert result.exit_code == 0
    assert "the footprint of a was never measured" in result.stderr
    assert "--set consumers.a.footprint_mib=" in result.stderr
    assert rows(result.stdout)["strict"][0] == "2", "a takes no memory"

    given = await mgpu("simulate", str(recorded), "--set", "consumers.a.footprint_mib=600")
    assert given.stderr == ""
    assert rows(given.stdout)["strict"][0] == "3"


async def test_rules_that_a_baseline_does_without_are_said_once(mgpu: Mgpu, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    services = (service("a", rules=Rules(concurrency=2)), service("b"))
    traces.write(path, trace((0.0, "a", 1.0), (0.0, "a", 1.0), services=services, resident=("a",)))
    result = await mgpu("simulate", str(path))
    assert rows(result.stdout)["strict"][-1] == "0.00"
    assert result.stderr.count("eager: does without concurrency") == 1


async def test_a_trace_of_two_gpus_is_compared_without_eager(mgpu: Mgpu, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    traces.write(path, trace(*ABA, total_mib=(1000, 1000)))
    shown = rows((await mgpu("simulate", str(path))).stdout)
    assert "eager" not in shown
    assert shown["strict"][0] == "2"


async def test_all_judges_one_policy_on_the_twelve_scenarios(mgpu: Mgpu, tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    result = await mgpu(
        "simulate", "--all", "--jobs", "5", "--seeds", "1",
        "--policy", "resident-first", "--markdown", str(document),
    )  # fmt: skip

    assert result.exit_code == 0
    assert result.stdout.count("geometric mean") == 2
    text = document.read_text()
    for mix in ("homelab", "tight", "eight"):
        assert text.count(f"| {mix} bursts 0.8 |") == 2
    assert "resident-first (judged)" in text


async def test_all_as_json(mgpu: Mgpu) -> None:
    result = await mgpu("simulate", "--all", "--jobs", "5", "--seeds", "1", "--json")
    figures = json.loads(result.stdout)
    assert len(figures["scenarios"]) == 12
    assert set(figures["geometric_mean_ratios"]["p95_wait"]) == {
        "strict",
        "resident-first",
        "eager",
        "never loads",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such.jsonl"], "no-such.jsonl: cannot be read"),
        (["--workload", "office"], "there are homelab, tight, eight"),
        (["--workload", "tight", "--all"], "only one of them"),
        (["--all", "--svg", "x.svg"], "one workload"),
        ([*SMALL, "--set", "scheduler.order"], "must be KEY=VALUE"),
        (
            [*SMALL, "--set", "scheduler.order=odd"],
            "scheduler.order: must be arrival, resident-first or planned, not 'odd'",
        ),
        (
            ["--all", "--set", "scheduler.ordr=x"],
            "scheduler.ordr: unknown key; did you mean order?",
        ),
        (["--all", "--set", "gpu.cushion_mib=x"], "no whole number"),
        ([*SMALL, "--set", "consumers.x.footprint_mib=1"], "the trace has "),
        ([*SMALL, "--svg", "/nowhere/x.svg"], "/nowhere/x.svg: cannot be written"),
        ([*SMALL, "--policy", "best", "--svg", "x.svg"], "there is no best; there are strict"),
        ([*SMALL, "--policy", "planed"], "there is no planed; did you mean planned+lru?"),
        (["--all", "--policy", "planed"], "there is no planed; did you mean planned+lru?"),
        ([*SMALL, "--policy", "planned+lru"], "--policy is for --svg and --all"),
        ([*SMALL, "--set", "scheduler.odrer=x"], "unknown key; did you mean order?"),
        (["no-such.jsonl", "--seeds", "1"], "--seeds is for made-up workloads"),
        (["no-such.jsonl", "--seed", "1"], "--seed is for made-up workloads"),
        (["no-such.jsonl", "--jobs", "400"], "--jobs is for made-up workloads"),
        (["no-such.jsonl", "--utilisation", "0.5"], "--utilisation is for made-up workloads"),
        (["no-such.jsonl", "--arrivals", "poisson"], "--arrivals is for made-up workloads"),
        (["--all", "--utilisation", "0.5"], "--utilisation is for one workload"),
        (["--all", "--arrivals", "bursts"], "--arrivals is for one workload"),
    ],
)
async def test_what_makes_no_sense_is_refused(
    mgpu: Mgpu,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = await mgpu("simulate", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert files_in(tmp_path) == []
