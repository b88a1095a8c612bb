"""``mgpu simulate``: policies compared on a recorded workload or a made-up one, in virtual time."""

from __future__ import annotations

import difflib
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress
from rich.table import Table as RichTable
from rich.text import Text

from mgpu.cli import output
from mgpu.errors import ConfigError
from mgpu.simulation import comparison, fidelity, optimum, picture, policies, report, traces
from mgpu.simulation.comparison import SCENARIOS, Scenario, Score
from mgpu.simulation.engine import Conditions
from mgpu.simulation.policies import Baseline, Candidate
from mgpu.simulation.workload import MIXES, Arrivals, Trace

SEEDS = 1
SEEDS_OF_ALL = 20

_MAKES_UP = ("arrivals", "utilisation", "jobs", "seeds", "seed")
"""Options of made-up workloads; a recorded trace has no use for them."""
_OF_ONE_WORKLOAD = ("arrivals", "utilisation")
"""Those that ``--all`` tries several values of by itself."""

_TRACE = typer.Argument(help="A recorded trace (jobs.trace in broker.yaml).", show_default=False)
_WORKLOAD = typer.Option(help=f"A made-up workload: {', '.join(MIXES)}.")
_SET = typer.Option(
    "--set",
    metavar="KEY=VALUE",
    help="Try a setting: scheduler.KEY, gpu.cushion_mib or consumers.NAME.footprint_mib. The same "
    "scheduler key several times: every value is tried.",
)
_POLICY = typer.Option(
    help="The policy of --svg and --all, by its name in the table; otherwise what is configured "
    "by default, with --set."
)


@dataclass(frozen=True, slots=True)
class _Request:
    """What the command line asks for, apart from where the answer goes."""

    settings: Mapping[str, Sequence[str]]
    policy: str | None
    conditions: Conditions

    def candidates(self) -> list[Candidate]:
        """All rows of a table."""
        return policies.unique([*policies.baselines(), *policies.combinations(self.settings)])

    def judged(self) -> Candidate:
        """The policy to look at closely."""
        if self.policy is None:
            config = policies.chosen(self.settings)
            return Candidate(policies.name_of(config), config)
        known = [*policies.baselines(), *policies.combinations(self.settings)]
        for candidate in known:
            if candidate.name == self.policy:
                return candidate
        names = [candidate.name for candidate in known]
        near = difflib.get_close_matches(self.policy, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        raise ConfigError(f"--policy: there is no {self.policy}; {hint}")


def simulate(  # noqa: PLR0913 - the options of a command
    ctx: typer.Context,
    *,
    trace: Annotated[Path | None, _TRACE] = None,
    workload: Annotated[str | None, _WORKLOAD] = None,
    arrivals: Annotated[Arrivals, typer.Option(help="How made-up jobs come.")] = Arrivals.POISSON,
    utilisation: Annotated[
        float, typer.Option(min=0.01, max=10.0, help="Of the GPU by computing alone.")
    ] = 0.5,
    jobs: Annotated[int, typer.Option(min=1, max=100_000, help="How many are made up.")] = 400,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1, max=10_000, help=f"Made-up traces ({SEEDS}; {SEEDS_OF_ALL} with --all)."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 1,
    settings: Annotated[list[str] | None, _SET] = None,
    policy: Annotated[str | None, _POLICY] = None,
    shared_bandwidth: Annotated[
        bool, typer.Option("--shared-bandwidth", help="Two loads at once take twice as long.")
    ] = False,
    svg: Annotated[
        Path | None, typer.Option(help="Draw the GPU over time under --policy (the first seed).")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Judge --policy on all built-in workloads.")
    ] = False,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables here as well.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Compare scheduling policies on a workload, in virtual time."""
    if sum([trace is not None, workload is not None, everything]) > 1:
        raise typer.BadParameter("give a TRACE, --workload or --all: only one of them")
    if everything and svg is not None:
        raise typer.BadParameter("--svg draws one workload, not --all")
    _refuse_idle_options(ctx, recorded=trace is not None, everything=everything)
    count = seeds or (SEEDS_OF_ALL if everything else SEEDS)
    request = _Request(
        settings=_parsed(settings or []),
        policy=policy,
        conditions=Conditions(shared_bandwidth=shared_bandwidth),
    )
    if policy is not None and request.judged() and not everything and svg is None:
        raise typer.BadParameter("--policy is for --svg and --all; a table shows every policy")
    if everything:
        tables, figures = _judge(request, jobs, range(seed, seed + count))
    else:
        if trace is not None:
            title, found = _recorded(request, trace)
        else:
            scenario = _scenario(workload or "homelab", arrivals, utilisation)
            title = f"{scenario.name}, {jobs} jobs, {_counted(count, 'seed')}"
            drawn = [scenario.trace(jobs, number) for number in range(seed, seed + count)]
            found = [policies.apply_to_trace(request.settings, one) for one in drawn]
        tables, figures = _compare(request, title, found)
        if svg is not None:
            _draw(request, title, found[0], svg)
    if as_json:
        print(json.dumps(figures, indent=2))
    else:
        for table in tables:
            output.console().print(_rich(table))
    if markdown is not None:
        _write(markdown, report.document(_command(), tables))


def _refuse_idle_options(ctx: typer.Context, *, recorded: bool, everything: bool) -> None:
    """Refuse what was typed and would have no effect."""
    idle = {}
    if recorded:
        idle = dict.fromkeys(_MAKES_UP, "is for made-up workloads, not for a recorded one")
    elif everything:
        idle = dict.fromkeys(_OF_ONE_WORKLOAD, "is for one workload, not for --all")
        idle["svg"] = "draws one workload, not --all"
    for option, why in idle.items():
        source = ctx.get_parameter_source(option)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"--{option} {why}")


def _parsed(settings: Sequence[str]) -> dict[str, list[str]]:
    """``KEY=VALUE`` of the command line, the values of one key together."""
    parsed: dict[str, list[str]] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting}: must be KEY=VALUE")
        parsed.setdefault(key.strip(), []).append(value.strip())
    return parsed


def _scenario(mix: str, arrivals: Arrivals, utilisation: float) -> Scenario:
    if mix not in MIXES:
        raise ConfigError(f"--workload: there is no {mix}; there are {', '.join(MIXES)}")
    return Scenario(mix, arrivals, utilisation)


def _recorded(request: _Request, path: Path) -> tuple[str, list[Trace]]:
    recording = traces.read(path)
    trace = policies.apply_to_trace(request.settings, recording.trace)
    for name in recording.unknown:
        output.complain(f"{path}: no load of {name} was measured: it counts as 0 s")
    for name in recording.unmeasured:
        if not trace.services[name].footprint_mib:
            output.complain(
                f"{path}: the footprint of {name} was never measured: it takes no memory here; "
                f"give it with --set consumers.{name}.footprint_mib=MIB"
            )
    for sentence in fidelity.left_out(trace):
        output.complain(f"{path}: {sentence}")
    return f"{path}, {_counted(len(trace.arrivals), 'job')}", [trace]


def _compare(
    request: _Request, title: str, found: Sequence[Trace]
) -> tuple[list[report.Table], object]:
    """Every policy on one workload."""
    candidates = [
        candidate
        for candidate in request.candidates()
        if candidate.baseline is not Baseline.EAGER or len(found[0].total_mib) == 1
    ]
    with _progress(len(found)) as advance:
        scores = comparison.compare(candidates, found, request.conditions, progress=advance)
    named = {c.name: score for c, score in zip(candidates, scores, strict=True)}
    least_s = [optimum.least_reload_s(trace) for trace in found]
    known_s = [seconds for seconds in least_s if seconds is not None]
    least = sum(known_s) / len(known_s) if len(known_s) == len(least_s) else None
    return [report.policies_table(title, named, least)], report.policies_json(named, least)


def _judge(request: _Request, jobs: int, seeds: range) -> tuple[list[report.Table], object]:
    """One policy against the baselines, on every built-in workload."""
    candidates = [request.judged(), *policies.baselines()]
    names = [candidate.name for candidate in candidates]
    if names[0] in names[1:]:
        names[0] += " (judged)"
    scores: dict[Scenario, dict[str, Score]] = {}
    with _progress(len(SCENARIOS) * len(seeds)) as advance:
        for scenario in SCENARIOS:
            found = [
                policies.apply_to_trace(request.settings, scenario.trace(jobs, seed))
                for seed in seeds
            ]
            row = comparison.compare(candidates, found, request.conditions, progress=advance)
            scores[scenario] = dict(zip(names, row, strict=True))
    return list(report.ratio_tables(scores)), report.ratios_json(scores)


def _draw(request: _Request, title: str, trace: Trace, path: Path) -> None:
    judged = request.judged()
    result = comparison.run(judged, trace, request.conditions, lanes=True)
    _write(path, picture.draw(trace, result, f"{judged.name}: {title}"))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    output.complain(f"wrote {path}")


@contextmanager
def _progress(steps: int) -> Iterator[Callable[[], None]]:
    """Show how far it is, at a terminal."""
    console = output.console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("simulating", total=steps)
        yield lambda: progress.advance(task)


def _rich(table: report.Table) -> RichTable:
    drawn = RichTable(
        title=Text(output.plain(table.title)), title_justify="left", box=None, pad_edge=False
    )
    for number, column in enumerate(table.columns):
        drawn.add_column(Text(column), justify="right" if number else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(output.plain(cell)) for cell in row))
    return drawn


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _command() -> str:
    return shlex.join(["mgpu", *sys.argv[1:]])
