"""The broker's state on a terminal, drawn from the JSON document of ``GET /api/status``.

``render`` makes a picture that adapts to the width it is given: memory of every GPU as one bar,
stacked by consumer, then consumers, queue and evictions. ``progress_line`` says the same in one
line, for a log or a pipe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mgpu.cli.bar import Bar, Part
from mgpu.cli.output import plain
from mgpu.core.effects import Evicted
from mgpu.core.model import ConsumerState, Outcome

_COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red", "bright_cyan", "bright_magenta")
_SIGNS = {
    ConsumerState.RESIDENT: ("●", "green"),
    ConsumerState.LOADING: ("◐", "yellow"),
    ConsumerState.DRAINING: ("◑", "yellow"),
    ConsumerState.UNLOADING: ("◑", "magenta"),
    ConsumerState.ABSENT: ("○", "dim"),
    ConsumerState.UNKNOWN: ("?", "dim"),
    ConsumerState.COOLDOWN: ("▲", "red"),
    ConsumerState.QUARANTINED: ("■", "bold red"),
}
_HOLDING = {ConsumerState.RESIDENT, ConsumerState.DRAINING, ConsumerState.UNLOADING}
_OUTCOME_STYLES = {
    Outcome.DONE: "green",
    Outcome.FAILED: "bold red",
    Outcome.CANCELLED: "yellow",
    Outcome.EXPIRED: "yellow",
    Outcome.REJECTED: "red",
}
_WIDE = 88
_MOST_ROWS = 6
_MIB_PER_GIB = 1024

Status = Mapping[str, Any]


def gib(mib: float) -> str:
    """Memory as people read it."""
    return f"{mib / _MIB_PER_GIB:.1f} GiB"


def duration(seconds: float) -> str:
    """A length of time as people read it."""
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def render(
    status: Status,
    evictions: Sequence[Evicted] | None = None,
    outcomes: Mapping[str, int] | None = None,
    *,
    cushion_mib: int = 0,
) -> RenderableType:
    """The whole picture.

    ``evictions`` are the recent ones, the latest last; ``outcomes`` counts ended jobs by outcome;
    None: not known, so not shown. ``cushion_mib`` is what has to stay free on every GPU.
    """
    return _Picture(status, evictions, outcomes, cushion_mib)


def progress_line(status: Status, outcomes: Mapping[str, int] | None = None) -> str:
    """The state in one plain line without colours."""
    consumers = status["consumers"].items()
    ended = ", ".join(f"{count} {outcome}" for outcome, count in (outcomes or {}).items() if count)
    running = "+".join(name for name, consumer in consumers if consumer["running"])
    resident = "+".join(name for name, consumer in consumers if consumer["state"] in _HOLDING)
    gpus = ", ".join(
        f"gpu{gpu['index']} " + (f"{gib(gpu['free_mib'])} free" if gpu["healthy"] else "ill")
        for gpu in status["gpus"]
    )
    line = (
        f"jobs: {ended or 'none ended'}, {len(status['queue'])} waiting; "
        f"computing: {running or 'nobody'}; resident: {resident or 'nobody'}; {gpus}; "
        f"{status['loads']} loads, {status['evictions']} evictions"
    )
    return plain(line)


@dataclass(frozen=True)
class _Picture:
    status: Status
    evictions: Sequence[Evicted] | None
    outcomes: Mapping[str, int] | None
    cushion_mib: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.max_width >= _WIDE
        for gpu in self.status["gpus"]:
            yield self._gpu(gpu)
        for problem in self.status.get("problems", ()):
            yield Text(f" {plain(problem)}", "bold red")
        yield self._consumers(wide=wide)
        queue, evictions = self._queue_lines(), self._eviction_lines()
        if evictions is None:
            yield _panel(queue, f"queue ({len(self.status['queue'])})")
        else:
            rows = max(3, len(queue), len(evictions)) if wide else 0
            panels = (
                _panel(queue, f"queue ({len(self.status['queue'])})", rows),
                _panel(evictions, f"evictions ({self.status['evictions']})", rows),
            )
            if wide:
                pair = Table.grid(expand=True)
                pair.add_column(ratio=1)
                pair.add_column(ratio=1)
                pair.add_row(*panels)
                yield pair
            else:
                yield from panels
        yield self._footer()

    def _name(self, name: str) -> Text:
        return Text(plain(name), self._colour(name))

    def _colour(self, name: str) -> str:
        names = list(self.status["consumers"])
        return _COLOURS[names.index(name) % len(_COLOURS)] if name in names else "white"

    def _gpu(self, gpu: Status) -> RenderableType:
        title = Text.assemble(" ", (f"GPU {gpu['index']}", "bold"), f" {plain(gpu['name'])} ")
        if not gpu["healthy"]:
            reason = plain(gpu.get("error") or "no measurement")
            body: RenderableType = Text(f"does not answer: {reason}", "red")
        else:
            facts = Text.assemble(
                (gib(gpu["total_mib"] - gpu["free_mib"]), "bold"),
                f" of {gib(gpu['total_mib'])} used, ",
                (gib(gpu["free_mib"]), "bold"),
                " free",
            )
            holder = gpu["lock"]["consumer"]
            computing = Text("nobody computes", "dim")
            if holder is not None:
                computing = Text.assemble(self._name(holder), " computes")
            line = Table.grid(expand=True)
            line.add_column(ratio=1)
            line.add_column(justify="right")
            line.add_row(facts, computing)
            body = Group(Bar(self._parts(gpu)), line, *_foreign(gpu))
        return Panel(body, title=title, title_align="left", border_style="dim")

    def _parts(self, gpu: Status) -> Iterator[Part]:
        """Who holds what of a GPU, as far as the document tells.

        The measured figure is what is to be explained: foreign processes and consumers that are in
        memory first; what remains belongs to loads under way, and to what unloads left behind.
        """
        used = left = gpu["total_mib"] - gpu["free_mib"]
        here = [
            (name, consumer, consumer.get("gpus") or [0])
            for name, consumer in self.status["consumers"].items()
            if gpu["index"] in (consumer.get("gpus") or [0])
        ]
        foreign = min(left, gpu["foreign_mib"])
        left -= foreign
        for states, looks in ((_HOLDING, ("=", " ")), ({ConsumerState.LOADING}, ("+", "░"))):
            for name, consumer, gpus in here:
                if consumer["state"] not in states:
                    continue
                needs = max(consumer["footprint_mib"], consumer["measured_mib"] or 0)
                held = min(left, needs // len(gpus))
                left -= held
                style = f"black on {self._colour(name)}"
                yield Part(plain(name), gib(held), held, style, *looks)
        yield Part("left over", gib(left), left, "white on grey42", "~")
        yield Part("foreign", gib(foreign), foreign, "white on grey50", "#")
        free = gpu["total_mib"] - used
        cushion = min(free, self.cushion_mib)
        yield Part("free", gib(free - cushion), free - cushion, "grey70 on grey19", ".")
        yield Part("cushion", gib(cushion), cushion, "white on grey35", ":")

    def _consumers(self, *, wide: bool) -> RenderableType:
        table = Table(expand=True, border_style="dim", header_style="dim", box=box.ROUNDED)
        table.add_column("consumer", no_wrap=True)
        table.add_column("state", no_wrap=True, ratio=2)
        table.add_column("footprint", justify="right", no_wrap=True)
        table.add_column("running" if wide else "run", justify="right")
        table.add_column("queued" if wide else "wait", no_wrap=True, ratio=2 if wide else None)
        if wide:
            table.add_column("last used", justify="right", no_wrap=True)
        for name, consumer in self.status["consumers"].items():
            used_s = consumer["last_used_s"]
            row: list[RenderableType] = [
                self._name(name),
                _state(consumer),
                _footprint(consumer),
                Text(str(consumer["running"]), "bold" if consumer["running"] else "dim"),
                self._backlog(name, consumer["queued"], 16 if wide else 0),
            ]
            if wide:
                row.append("never" if used_s is None else f"{duration(used_s)} ago")
            table.add_row(*row)
        return table

    def _backlog(self, name: str, queued: int, most: int) -> Text:
        """The number, with a mark for each waiting job as far as there is room."""
        number = Text(f"{queued:>3}", "" if queued else "dim")
        return number.append(" ").append("▪" * min(queued, most), self._colour(name))

    def _queue_lines(self) -> list[Text]:
        queue = self.status["queue"]
        shown = queue[: _MOST_ROWS if len(queue) <= _MOST_ROWS else _MOST_ROWS - 1]
        lines = []
        for waiter in shown:
            eta_s = waiter.get("eta_s")
            due = "" if eta_s is None else f", due in {duration(eta_s)}"
            lines.append(
                Text.assemble(
                    (f"{waiter['position']:>3} ", "dim"),
                    self._name(waiter["consumer"]),
                    (f" waited {duration(waiter['waited_s'])}{due}", "dim"),
                )
            )
        if len(shown) < len(queue):
            lines.append(Text(f"    and {len(queue) - len(shown)} more", "dim"))
        return lines or [Text("nobody waits", "dim")]

    def _eviction_lines(self) -> list[Text] | None:
        """The latest first."""
        if self.evictions is None:
            return None
        return [
            Text.assemble(
                self._name(evicted.victim),
                " → ",
                self._name(evicted.target),
                (f" needs {gib(evicted.need_mib)}", "dim"),
            )
            for evicted in reversed(self.evictions[-_MOST_ROWS:])
        ] or [Text("none yet", "dim")]

    def _footer(self) -> Text:
        footer = Text(" ")
        if self.outcomes is not None:
            footer.append("jobs ", "dim")
            for outcome in Outcome:
                count = self.outcomes.get(outcome, 0)
                footer.append(f"{outcome} {count}  ", _OUTCOME_STYLES[outcome] if count else "dim")
        footer.append(f"loads {self.status['loads']}  evictions {self.status['evictions']}")
        for condition in self._conditions():
            footer.append(f"  {condition}", "bold yellow")
        return footer

    def _conditions(self) -> Iterator[str]:
        """Why no job begins, if that is so."""
        if self.status.get("paused"):
            paused_s = self.status.get("paused_s")
            for_how_long = "" if paused_s is None else f" for {duration(paused_s)}"
            kept = ", kept over a restart" if self.status.get("pause_kept") else ""
            yield f"paused{for_how_long}{kept}; mgpu resume ends it"
        if self.status.get("draining"):
            yield "draining"


def _state(consumer: Status) -> Text:
    sign, style = _SIGNS.get(consumer["state"], ("?", "dim"))
    word = "in use" if consumer.get("busy") else plain(consumer["state"])
    text = Text(f"{sign} {word}", style)
    if not consumer["healthy"]:
        text.append(" ill", "bold red")
    if consumer["pinned"]:
        text.append(" pinned", "dim")
    return text


def _footprint(consumer: Status) -> str:
    if consumer.get("footprint_source") == "unknown":
        return "unknown"
    return gib(max(consumer["footprint_mib"], consumer["measured_mib"] or 0))


def _foreign(gpu: Status) -> Iterator[Text]:
    """The programs of no consumer that hold memory of a GPU, the largest first."""
    found = gpu.get("foreign", [])
    if not found:
        return
    named = [
        f"{plain(entry['name'] or 'hidden')} ({entry['pid']}) "
        + ("?" if entry["mib"] is None else gib(entry["mib"]))
        for entry in found[:_MOST_ROWS]
    ]
    if len(found) > _MOST_ROWS:
        named.append(f"and {len(found) - _MOST_ROWS} more")
    yield Text(f"foreign: {', '.join(named)}", "dim")


def _panel(lines: Sequence[Text], title: str, rows: int = 0) -> Panel:
    filled = [*lines, *[Text()] * (rows - len(lines))]
    return Panel(Group(*filled), title=f" {title} ", title_align="left", border_style="dim")
