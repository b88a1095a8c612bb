"""What a simulation of a recorded trace leaves out, said in the words of the configuration.

The scheduler's own policies keep all rules that a trace has (``mgpu.simulation.policies.rules``).
The baselines ``eager`` and ``never loads`` are defined for consumers without any.
"""

from __future__ import annotations

from collections.abc import Iterator

from mgpu.core.model import LockMode
from mgpu.simulation.workload import NO_RULES, Trace

_COMPUTING = ("concurrency",)
_LEAVING = ("can_coexist_with", "residual_mib", "pinned", "idle_unload_s")


def left_out(trace: Trace) -> Iterator[str]:
    """A sentence for everything in a trace that a simulation does not honour."""
    managed = _of(trace, "vram_managed")
    if managed:
        yield f"{managed}: vram_managed, so what it holds is not known: it takes no memory here"
    lazy = _of(trace, "can_load")
    if lazy:
        yield f"{lazy}: loaded by the first job, whose time holds the load: loads take none here"
    shared = ["gpu.lock: shared"] if trace.lock is LockMode.SHARED else []
    computing = shared + _used(trace, _COMPUTING)
    others = _used(trace, _LEAVING)
    if _of(trace, "can_unload"):
        others.append("that some cannot be unloaded")
    if computing:
        yield f"never loads: one job at a time computes on a GPU, without {', '.join(computing)}"
    if (computing or others) and len(trace.total_mib) == 1:
        yield f"eager: does without {', '.join(computing + others)}"


def _of(trace: Trace, rule: str) -> str:
    default = getattr(NO_RULES, rule)
    names = (s.name for s in trace.services.values() if getattr(s.rules, rule) != default)
    return ", ".join(names)


def _used(trace: Trace, rules: tuple[str, ...]) -> list[str]:
    return [rule for rule in rules if _of(trace, rule)]
