"""A workload as a file: JSON Lines, a header first, then one line per job, load or unload.

::

    {"mgpu_trace": 1, "total_mib": [24576], "cushion_mib": 256, "lock": "exclusive", "resident": [],
     "services": {"tts": {"footprint_mib": 2400, "load_s": 3.0, "unload_s": 0.5, "gpus": null,
                          "concurrency": 4}}}
    {"at_s": 0.25, "consumer": "tts", "service_s": 1.5, "priority": 0}
    {"consumer": "tts", "load_s": 3.1}
    {"consumer": "tts", "unload_s": 0.6}
    {"consumer": "tts", "footprint_mib": 2600}

Jobs stand in the order in which they ended and are sorted by arrival when they are read. A
service's times of loading and unloading are the means of its lines; without any, what the header
says; without that either, 0, and ``Recording.unknown`` names it. Its footprint is that of its last
line, for it may have been measured while the trace was written; without any, what the header says;
without that either (null, or 0), 0, and ``Recording.unmeasured`` names it. A service's entry has
those of ``workload.Rules`` that differ from the default; traces from before there were any have
none. What a broker does is written by ``mgpu.simulation.recorder``.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mgpu.core.model import LockMode
from mgpu.errors import ConfigError
from mgpu.simulation.workload import NO_RULES, Arrival, Rules, Service, Trace

VERSION = 1

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Mib = Annotated[int, Field(ge=0)]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _ServiceEntry(_Line):
    footprint_mib: Mib | None
    load_s: Seconds | None = None
    unload_s: Seconds | None = None
    gpus: list[int] | None = None
    concurrency: Annotated[int, Field(ge=1)] = NO_RULES.concurrency
    can_coexist_with: list[str] = []
    residual_mib: Mib = NO_RULES.residual_mib
    vram_managed: bool = NO_RULES.vram_managed
    can_load: bool = NO_RULES.can_load
    can_unload: bool = NO_RULES.can_unload
    pinned: bool = NO_RULES.pinned
    idle_unload_s: Seconds | None = NO_RULES.idle_unload_s

    @property
    def rules(self) -> Rules:
        return Rules(
            concurrency=self.concurrency,
            can_coexist_with=frozenset(self.can_coexist_with),
            residual_mib=self.residual_mib,
            vram_managed=self.vram_managed,
            can_load=self.can_load,
            can_unload=self.can_unload,
            pinned=self.pinned,
            idle_unload_s=self.idle_unload_s,
        )

    @property
    def loads_itself(self) -> bool:
        """Whether the broker neither loads it nor bills it; old traces tell by two zeros."""
        return self.vram_managed or (self.footprint_mib == 0 and self.load_s == 0)


class _Header(_Line):
    mgpu_trace: int
    total_mib: Annotated[list[Mib], Field(min_length=1)]
    cushion_mib: Mib
    lock: Literal["exclusive", "shared"] = "exclusive"
    services: dict[str, _ServiceEntry]
    resident: list[str] = []


class _JobLine(_Line):
    at_s: Seconds
    consumer: str
    service_s: Seconds
    priority: int = 0


class _LoadLine(_Line):
    consumer: str
    load_s: Seconds


class _UnloadLine(_Line):
    consumer: str
    unload_s: Seconds


class _FootprintLine(_Line):
    consumer: str
    footprint_mib: Mib


_AnyLine = _JobLine | _LoadLine | _UnloadLine | _FootprintLine

_KINDS: Mapping[str, type[_AnyLine]] = {
    "load_s": _LoadLine,
    "unload_s": _UnloadLine,
    "footprint_mib": _FootprintLine,
}
"""What a line is by the key that only it has; any other is a job's."""

T = TypeVar("T", bound=_Line)


@dataclass(frozen=True, slots=True)
class Recording:
    """What a file holds.

    ``unknown``: services of whose loads nothing is known; ``unmeasured``: those of whose
    footprints nothing is, which so take no memory.
    """

    trace: Trace
    unknown: tuple[str, ...]
    unmeasured: tuple[str, ...]


class _Times:
    """Measured seconds per service."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, list[float]] = defaultdict(list)

    def add(self, consumer: str, seconds: float) -> None:
        self._seconds[consumer].append(seconds)

    def mean(self, consumer: str, otherwise: float | None) -> float | None:
        seconds = self._seconds.get(consumer)
        return sum(seconds) / len(seconds) if seconds else otherwise


def read(path: Path) -> Recording:
    """Read a recorded trace; raise ``ConfigError`` with file and line for what is wrong in it."""
    try:
        with path.open(encoding="utf-8") as file:
            return _parse(path, file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text") from error


def write(path: Path, trace: Trace) -> None:
    """Write a trace that ``read`` gives back unchanged."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines(trace))


def lines(trace: Trace) -> Iterator[str]:
    """The lines of a trace's file."""
    services = {
        service.name: {
            "footprint_mib": service.footprint_mib,
            "load_s": service.load_s,
            "unload_s": service.unload_s,
            "gpus": service.gpus,
            **rules_entry(service.rules),
        }
        for service in trace.services.values()
    }
    yield header(
        total_mib=trace.total_mib,
        cushion_mib=trace.cushion_mib,
        lock=trace.lock,
        services=services,
        resident=trace.resident,
    )
    for arrival in trace.arrivals:
        yield job_line(arrival)


def header(
    *,
    total_mib: Iterable[int],
    cushion_mib: int,
    lock: LockMode,
    services: dict[str, dict[str, Any]],
    resident: Iterable[str],
) -> str:
    """The first line of a file."""
    return json.dumps(
        {
            "mgpu_trace": VERSION,
            "total_mib": list(total_mib),
            "cushion_mib": cushion_mib,
            "lock": lock,
            "resident": list(resident),
            "services": services,
        }
    )


def rules_entry(rules: Rules) -> dict[str, Any]:
    """What a service's entry in the header says of its rules: those that are not the default."""
    return {
        name: sorted(value) if isinstance(value, frozenset) else value
        for name, value in asdict(rules).items()
        if value != getattr(NO_RULES, name)
    }


def job_line(arrival: Arrival) -> str:
    """The line of one job."""
    return json.dumps(
        {
            "at_s": arrival.at_s,
            "consumer": arrival.consumer,
            "service_s": arrival.service_s,
            "priority": arrival.priority,
        }
    )


def time_line(consumer: str, kind: str, seconds: float) -> str:
    """The line of one load or unload; ``kind`` is ``load_s`` or ``unload_s``."""
    return json.dumps({"consumer": consumer, kind: seconds})


def footprint_line(consumer: str, footprint_mib: int) -> str:
    """The line of a footprint that was measured."""
    return json.dumps({"consumer": consumer, "footprint_mib": footprint_mib})


def _parse(path: Path, file: Iterable[str]) -> Recording:
    numbered = ((n, line) for n, line in enumerate(file, start=1) if line.strip())
    first = next(numbered, None)
    if first is None:
        raise ConfigError(f"{path}:1: the file is empty: no job has computed yet")
    head = _read_header(path, *first)
    arrivals: list[Arrival] = []
    loads, unloads = _Times(), _Times()
    footprints_mib = {name: entry.footprint_mib or 0 for name, entry in head.services.items()}
    for number, text in numbered:
        match _read_line(path, number, text, head):
            case _JobLine() as job:
                arrivals.append(Arrival(job.at_s, job.consumer, job.service_s, job.priority))
            case _LoadLine(consumer=consumer, load_s=seconds):
                loads.add(consumer, seconds)
            case _UnloadLine(consumer=consumer, unload_s=seconds):
                unloads.add(consumer, seconds)
            case _FootprintLine(consumer=consumer, footprint_mib=footprint_mib):
                footprints_mib[consumer] = footprint_mib
    if not arrivals:
        raise ConfigError(f"{path}: there is no job in it")
    return _recording(head, arrivals, loads, unloads, footprints_mib)


def _recording(
    head: _Header,
    arrivals: list[Arrival],
    loads: _Times,
    unloads: _Times,
    footprints_mib: Mapping[str, int],
) -> Recording:
    services: dict[str, Service] = {}
    unknown = []
    for name, entry in head.services.items():
        load_s = loads.mean(name, entry.load_s)
        if load_s is None and entry.can_load:
            unknown.append(name)
        services[name] = Service(
            name=name,
            footprint_mib=footprints_mib[name],
            load_s=load_s or 0.0,
            unload_s=unloads.mean(name, entry.unload_s) or 0.0,
            gpus=None if entry.gpus is None else tuple(entry.gpus),
            rules=entry.rules,
        )
    trace = Trace(
        total_mib=tuple(head.total_mib),
        services=services,
        arrivals=tuple(sorted(arrivals, key=lambda arrival: arrival.at_s)),
        cushion_mib=head.cushion_mib,
        resident=tuple(head.resident),
        lock=LockMode(head.lock),
    )
    unmeasured = [
        name
        for name, entry in head.services.items()
        if not footprints_mib[name] and not entry.loads_itself
    ]
    return Recording(trace, tuple(unknown), tuple(unmeasured))


def _read_header(path: Path, number: int, text: str) -> _Header:
    values = _json(path, number, text)
    if values.get("mgpu_trace") != VERSION:
        _refuse(path, number, f"not the header of a trace of version {VERSION} (mgpu_trace)")
    head = _validated(path, number, _Header, values)
    for name in head.resident:
        if name not in head.services:
            _refuse(path, number, f"resident: there is no service {name}")
    for name, entry in head.services.items():
        if entry.gpus is not None and not set(entry.gpus) <= set(range(len(head.total_mib))):
            _refuse(path, number, f"services.{name}.gpus: there is no such GPU: {entry.gpus}")
        if entry.gpus == []:
            _refuse(path, number, f"services.{name}.gpus: names no GPU")
    return head


def _read_line(path: Path, number: int, text: str, head: _Header) -> _AnyLine:
    values = _json(path, number, text)
    kind: type[_AnyLine] = next((_KINDS[key] for key in _KINDS if key in values), _JobLine)
    line = _validated(path, number, kind, values)
    if line.consumer not in head.services:
        _refuse(path, number, f"consumer: the header has no service {line.consumer}")
    return line


def _json(path: Path, number: int, text: str) -> dict[str, Any]:
    try:
        values = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        _refuse(path, number, f"not JSON: {error}")
    if not isinstance(values, dict):
        _refuse(path, number, "not a JSON object")
    return values


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _validated(path: Path, number: int, model: type[T], values: dict[str, Any]) -> T:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        _refuse(path, number, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")


def _refuse(path: Path, number: int, message: str) -> NoReturn:
    raise ConfigError(f"{path}:{number}: {message}")
