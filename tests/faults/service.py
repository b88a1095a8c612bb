"""What is really the case with one consumer, and which faults wait for its next opportunity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mgpu.core.events import Event
from tests.faults.kinds import Fault
from tests.faults.scenario import Spec

LET_GO_S = 0.1
"""How long a job that is told to stop goes on."""

OF_LOADS = (
    Fault.LOAD_REFUSED,
    Fault.LOAD_HANGS,
    Fault.LOAD_FAILS,
    Fault.LOAD_LEAVES_MEMORY,
    Fault.LOAD_ANSWER_LOST,
    Fault.LOAD_SLOW,
    Fault.DIES_LOADING,
    Fault.FOREIGN_DURING_LOAD,
)
OF_UNLOADS = (
    Fault.UNLOAD_REFUSED,
    Fault.UNLOAD_HANGS,
    Fault.UNLOAD_ANSWER_LOST,
    Fault.MEMORY_NEVER_BACK,
    Fault.RESIDUAL_LEFT,
    Fault.LATE_MEMORY,
    Fault.MEMORY_IN_STEPS,
    Fault.MEMORY_BEFORE_ANSWER,
    Fault.DIES_UNLOADING,
)
OF_JOBS = (
    Fault.DIES_IN_JOB,
    Fault.JOB_FAILS,
    Fault.JOB_HANGS,
    Fault.JOB_TAKES_MEMORY,
    Fault.END_TWICE,
    Fault.END_WITH_OLD_TOKEN,
    Fault.LEAVES_AT_THE_END,
    Fault.LETS_GO_LATE,
)
ARMED = frozenset((*OF_LOADS, *OF_UNLOADS, *OF_JOBS, Fault.ESCALATION_HANGS, Fault.ANSWER_TWICE))
"""Faults that wait for the next load, unload or job of their subject."""


@dataclass(slots=True)
class Computing:
    """A job that a service works on."""

    token: int
    began_at: float
    ends_at: float
    lets_go_s: float = LET_GO_S


@dataclass(slots=True)
class Service:
    """What is really the case with one consumer."""

    spec: Spec
    true_mib: int
    alive: bool = True
    loaded: bool = False
    loaded_key: str = ""
    """What it was told to load with; empty: it loaded by itself."""
    held_mib: dict[int, int] = field(default_factory=dict)
    generation: int = 0
    """Number of its process: what an older one had begun is void."""
    asked: bool = False
    """A load or an unload is under way for the present broker."""
    computing: dict[str, Computing] = field(default_factory=dict)
    armed: dict[Fault, list[float]] = field(default_factory=dict)
    last_answers: dict[str, Callable[[float], Event]] = field(default_factory=dict)
    """Of its last load and its last unload."""
    doubtful: bool = True
    """The broker has no reason to know whether it is loaded."""

    @property
    def name(self) -> str:
        """Its name in the rules."""
        return self.spec.name
