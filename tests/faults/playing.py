"""Playing seeds, and cutting the history of one that fails down to what makes it fail."""

from __future__ import annotations

import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from mgpu.core.model import ConsumerPolicy
from tests.faults.kinds import Fault, label
from tests.faults.scenario import Line, Scenario, Spec, draw
from tests.faults.world import World

LONGEST_S = 5.0
"""Of computing time; a seed takes about 20 ms. A scheduler that never comes back fails, too."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A history, and what did not hold."""

    scenario: Scenario
    what: str

    @property
    def kind(self) -> str:
        """What failed, without the names and numbers of this once."""
        names = "|".join(spec.name for spec in self.scenario.specs)
        first_line = self.what.partition("\n")[0]
        return re.sub(rf"[\d.]+|\b({names})\b|\b[jx]\d\S*", "_", first_line)


def play(
    scenario: Scenario, met: Counter[Fault] | None = None, longest_s: float = LONGEST_S
) -> Failure | None:
    """Play one history; ``met`` counts the faults that had an opportunity."""
    world = World(scenario)
    try:
        with _limit(longest_s):
            world.run()
    except Exception as error:  # noqa: BLE001 - a scheduler that raises is what is looked for
        return Failure(scenario, f"{type(error).__name__}: {error}")
    finally:
        if met is not None:
            met.update(world.machine.met)
    return None


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    def too_long(_number: int, _frame: Any) -> None:
        raise TimeoutError(f"it did not come back within {seconds:g} s")

    before = signal.signal(signal.SIGVTALRM, too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, before)


@dataclass(slots=True)
class Report:
    """What came of a run of seeds; it ends with the first that fails."""

    seeds: int
    seconds: float
    met: dict[str, int]
    seed: int | None = None
    """The seed that failed."""
    what: str = ""


def run(first: int, seeds: int, played: Callable[[int], None] = lambda _seed: None) -> Report:
    """Play seeds until one fails; ``played`` hears of each."""
    met: Counter[Fault] = Counter()
    started_s = time.process_time()
    failure: Failure | None = None
    seed = first
    for seed in range(first, first + seeds):
        failure = play(draw(seed), met)
        played(seed)
        if failure is not None:
            break
    return Report(
        seeds=seed - first + 1,
        seconds=time.process_time() - started_s,
        met={label(fault): met[fault] for fault in Fault},
        seed=seed if failure else None,
        what=failure.what if failure else "",
    )


def shrink(failure: Failure, *, tries: int = 600) -> Failure:
    """The shortest history found that fails in the same way.

    Lines are cut by delta debugging (A. Zeller, R. Hildebrandt, "Simplifying and isolating
    failure-inducing input", 2002); then consumers that nobody asks for any more, and what is
    special about the others and the rules.
    """
    budget = [tries]

    def fails(scenario: Scenario) -> Failure | None:
        if budget[0] <= 0:
            return None
        budget[0] -= 1
        found = play(scenario)
        return found if found is not None and found.kind == failure.kind else None

    best = _cut_lines(failure, fails)
    for simpler in (_without_consumer, _plainer_consumer, _plainer_rules):
        best = _simplify(best, simpler, fails)
    return _cut_lines(best, fails)


Fails = Callable[[Scenario], Failure | None]


def _cut_lines(failure: Failure, fails: Fails) -> Failure:
    best, size = failure, max(1, len(failure.scenario.lines) // 2)
    while size:
        lines, start, shorter = best.scenario.lines, 0, False
        while start < len(lines):
            fewer: tuple[Line, ...] = lines[:start] + lines[start + size :]
            if found := fails(replace(best.scenario, lines=fewer)):
                best, lines, shorter = found, fewer, True
            else:
                start += size
        if not shorter or size > 1:
            size //= 2
    return best


def _simplify(
    best: Failure, simpler: Callable[[Scenario], Iterator[Scenario]], fails: Fails
) -> Failure:
    again = True
    while again:
        again = False
        for scenario in simpler(best.scenario):
            if found := fails(scenario):
                best, again = found, True
                break
    return best


def _without_consumer(scenario: Scenario) -> Iterator[Scenario]:
    asked = {
        getattr(line, "consumer", "") or getattr(line, "subject", "") for line in scenario.lines
    }
    for spec in scenario.specs:
        if spec.name not in asked and len(scenario.specs) > 1:
            specs = tuple(s for s in scenario.specs if s is not spec)
            rules = {s.name: s.policy for s in specs}
            yield replace(scenario, specs=specs, policy=replace(scenario.policy, consumers=rules))


def _plainer_consumer(scenario: Scenario) -> Iterator[Scenario]:
    plain: dict[str, Any] = {
        "residual_mib": 0,
        "gpus": None,
        "can_coexist_with": frozenset(),
        "vram_managed": False,
        "can_unload": True,
        "can_load": True,
        "can_escalate": False,
        "concurrency": 1,
        "max_queue": 64,
        "priority": 0,
        "pinned": False,
        "idle_unload_s": None,
        "busy_timeout_s": None,
    }
    for index, spec in enumerate(scenario.specs):
        for policy in _plainer(spec, plain):
            specs = list(scenario.specs)
            specs[index] = replace(spec, policy=policy)
            rules = {s.name: s.policy for s in specs}
            yield replace(
                scenario, specs=tuple(specs), policy=replace(scenario.policy, consumers=rules)
            )


def _plainer(spec: Spec, plain: Mapping[str, Any]) -> Iterator[ConsumerPolicy]:
    """The policy of a consumer with one thing about it as it is with most."""
    if spec.policy.learns:
        yield replace(spec.policy, footprint_mib=spec.true_mib, learns=False)
    for key, value in plain.items():
        if getattr(spec.policy, key) != value:
            yield replace(spec.policy, **{key: value})


def _plainer_rules(scenario: Scenario) -> Iterator[Scenario]:
    plain: dict[str, Any] = {
        "max_queue": 50,
        "min_resident_s": 0.0,
        "max_resident": 0,
        "max_parallel_loads": 1,
        "prefetch": False,
    }
    if scenario.starts_at:
        yield replace(scenario, starts_at=0.0)
    if scenario.attributed:
        yield replace(scenario, attributed=False)
    for key, value in plain.items():
        if getattr(scenario.policy, key) != value:
            yield replace(scenario, policy=replace(scenario.policy, **{key: value}))


def story(failure: Failure) -> str:
    """What happens in a history, for people to read."""
    world = World(failure.scenario, tell=True)
    try:
        with _limit(LONGEST_S):
            world.run()
    except Exception:  # noqa: BLE001 - it is known to fail; its story is wanted
        pass
    assert world.story is not None
    scenario = failure.scenario
    consumers = map(_described, scenario.specs)
    return "\n".join([_rules(scenario), *consumers, *world.story, failure.what])


def _rules(scenario: Scenario) -> str:
    policy = scenario.policy
    rules = {f.name: getattr(policy, f.name) for f in fields(policy) if f.name != "consumers"}
    shown = ", ".join(f"{key} {value}" for key, value in rules.items())
    whose = ", whose memory is told" if scenario.attributed else ""
    return f"{scenario.gpus} GPU(s){whose}, {scenario.foreign_mib} MiB foreign; {shown}"


def _described(spec: Spec) -> str:
    """A consumer's policy, as far as it is not what every consumer's is."""
    usual = ConsumerPolicy(name=spec.name, footprint_mib=spec.policy.footprint_mib)
    special = {
        f.name: getattr(spec.policy, f.name)
        for f in fields(usual)
        if getattr(spec.policy, f.name) != getattr(usual, f.name)
    }
    shown = "".join(f", {key} {value}" for key, value in special.items())
    times = f"loads in {spec.load_s:g} s, unloads in {spec.unload_s:g} s"
    size_mib = spec.true_mib or spec.policy.footprint_mib
    return f"{spec.name}: {size_mib} MiB, {times}{shown}"
