"""The policies that are compared: every combination of the scheduler's own, and the baselines.

A policy of the scheduler is what the section ``scheduler`` of broker.yaml says, so each of its keys
can be tried. Its name is made of order, victims and, where it is on, ``prefetch``, joined by ``+``
(``resident-first+lru``), then of what else was set (``+max_overtake_s=30``). Keys and values are
taken from the configuration's model: what is added there is compared here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from mgpu.config.messages import sentences
from mgpu.config.model import Config, SchedulerConfig
from mgpu.config.policy import policy as policy_of
from mgpu.core.model import ConsumerPolicy, ConsumerState, Order, Policy
from mgpu.errors import ConfigError
from mgpu.simulation.workload import Service, Trace

COMPARED: tuple[str, ...] = tuple(
    key for key in ("order", "victims", "prefetch") if key in SchedulerConfig.model_fields
)
"""The keys that make a policy; all others are how it is tuned."""

Settings = Mapping[str, Sequence[str]]
"""Keys such as ``scheduler.order``, each with the values to be tried."""


class Baseline(StrEnum):
    """What to compare with; ``STRICT`` and ``RESIDENT_FIRST`` are the scheduler's own."""

    STRICT = "strict"
    """Arrival order and least recently used victims, nothing overlaps."""
    RESIDENT_FIRST = "resident-first"
    """Resident consumers first and least recently used victims, nothing overlaps."""
    EAGER = "eager"
    NEVER_LOADS = "never loads"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One row of a comparison; ``scheduler`` is None for what is no policy of the scheduler."""

    name: str
    scheduler: SchedulerConfig | None
    baseline: Baseline | None = None


def default() -> SchedulerConfig:
    """What a broker does when nothing is configured."""
    return SchedulerConfig()


def baselines() -> list[Candidate]:
    """The four that every comparison shows."""
    off: dict[str, Any] = {"victims": "lru", "prefetch": False}
    common = {key: off[key] for key in COMPARED if key in off}
    strict = SchedulerConfig.model_validate({"order": Order.ARRIVAL, **common})
    resident_first = SchedulerConfig.model_validate({"order": Order.RESIDENT_FIRST, **common})
    return [
        Candidate("strict", strict, Baseline.STRICT),
        Candidate("resident-first", resident_first, Baseline.RESIDENT_FIRST),
        Candidate("eager", None, Baseline.EAGER),
        Candidate("never loads", None, Baseline.NEVER_LOADS),
    ]


def chosen(settings: Settings) -> SchedulerConfig:
    """The defaults with the first value of each setting: the policy to look at closely.

    Raises ``ConfigError`` for a key or a value that the configuration would not take.
    """
    return _validated({key: values[0] for key, values in _of_scheduler(settings).items()})


def combinations(settings: Settings) -> list[Candidate]:
    """Every combination of the compared keys' values and of the values that were set.

    A compared key that was set takes only the values it was set to. Raises ``ConfigError``.
    """
    given = _of_scheduler(settings)
    axes = {key: given.get(key) or _values_of(key) for key in COMPARED}
    axes |= {key: values for key, values in given.items() if key not in COMPARED}
    configs = [
        _validated(dict(zip(axes, values, strict=True)))
        for values in itertools.product(*axes.values())
    ]
    return [Candidate(name_of(config), config) for config in configs]


def name_of(config: SchedulerConfig) -> str:
    """The name of a policy: the same settings, the same name."""
    parts = []
    for key in COMPARED:
        value = _plain(getattr(config, key))
        if value is not False:
            parts.append(key if value is True else str(value))
    tuned = config.model_fields_set - set(COMPARED)
    parts += [f"{key}={_plain(getattr(config, key))}" for key in sorted(tuned)]
    return "+".join(parts)


def apply_to_trace(settings: Settings, trace: Trace) -> Trace:
    """Change a trace's cushion and footprints as far as they were set.

    Keys are ``gpu.cushion_mib`` and ``consumers.NAME.footprint_mib``; the last value counts. Raises
    ``ConfigError`` for a consumer that the trace does not have, and for values that are no sizes.
    """
    services = dict(trace.services)
    cushion_mib = trace.cushion_mib
    for key, values in settings.items():
        match key.split("."):
            case ["scheduler", _]:
                pass
            case ["gpu", "cushion_mib"]:
                cushion_mib = _mib(key, values[-1])
            case ["consumers", *name, "footprint_mib"]:
                service = services.get(".".join(name))
                if service is None:
                    raise ConfigError(f"{key}: the trace has {', '.join(sorted(services))}")
                services[service.name] = replace(service, footprint_mib=_mib(key, values[-1]))
            case _:
                raise ConfigError(
                    f"{key}: what can be set is scheduler.KEY, gpu.cushion_mib and "
                    "consumers.NAME.footprint_mib"
                )
    return replace(trace, services=services, cushion_mib=cushion_mib)


def rules(config: SchedulerConfig, trace: Trace) -> Policy:
    """The core's rules for a trace.

    Queues are as long as the trace, and jobs wait and run for as long as it takes unless the
    configuration sets ``max_wait_s`` itself: policies are compared on the same jobs.
    """
    base = policy_of(Config(scheduler=config))
    count = len(trace.arrivals)
    patient = "max_wait_s" not in config.model_fields_set
    return replace(
        base,
        consumers={s.name: _consumer(s, trace, count) for s in trace.services.values()},
        cushion_mib=trace.cushion_mib,
        lock=trace.lock,
        max_queue=max(base.max_queue, count),
        max_wait_s=math.inf if patient else base.max_wait_s,
    )


def _consumer(service: Service, trace: Trace, jobs: int) -> ConsumerPolicy:
    rules = service.rules
    resident = service.name in trace.resident or rules.vram_managed
    ours = not rules.vram_managed
    return ConsumerPolicy(
        name=service.name,
        footprint_mib=service.footprint_mib,
        residual_mib=service.residual_mib,
        gpus=service.gpus,
        can_coexist_with=rules.can_coexist_with,
        vram_managed=rules.vram_managed,
        can_load=ours and rules.can_load,
        can_unload=ours and rules.can_unload,
        concurrency=rules.concurrency,
        pinned=rules.pinned,
        idle_unload_s=rules.idle_unload_s,
        max_queue=jobs,
        initially=ConsumerState.RESIDENT if resident else ConsumerState.ABSENT,
        job_timeout_s=math.inf,
    )


def _of_scheduler(settings: Settings) -> dict[str, Sequence[str]]:
    return {
        key.removeprefix("scheduler."): values
        for key, values in settings.items()
        if key.startswith("scheduler.")
    }


def _validated(values: Mapping[str, Any]) -> SchedulerConfig:
    try:
        return SchedulerConfig.model_validate(values)
    except ValidationError as error:
        path, sentence = next(sentences(error, values, lambda _: SchedulerConfig.model_fields))
        raise ConfigError(f"{'.'.join(['scheduler', *map(str, path)])}: {sentence}") from None


def _values_of(key: str) -> Sequence[Any]:
    """All values that a key of the section can take."""
    kind = SchedulerConfig.model_fields[key].annotation
    if get_origin(kind) is Literal:
        return get_args(kind)
    if kind is bool:
        return (False, True)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return tuple(kind)
    raise TypeError(f"scheduler.{key} has no list of values")


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _mib(key: str, text: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"{key}: {text!r} is no whole number of MiB")
    return int(text)


def unique(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Each policy once: a baseline that is a combination as well is shown as the baseline."""
    seen: set[str] = set()
    kept = []
    for candidate in candidates:
        key = candidate.name if candidate.scheduler is None else name_of(candidate.scheduler)
        if key not in seen:
            seen.add(key)
            kept.append(candidate)
    return kept
