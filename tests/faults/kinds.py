"""Everything that can go wrong in the simulated world, by name.

A fault strikes at a moment, at one consumer or one GPU (its subject), with an amount whose unit is
the fault's own. Those that wait for an opportunity (the next load, a client in some phase) count as
met when they had one.
"""

from __future__ import annotations

from enum import Enum


class Fault(Enum):
    """A kind of fault; its value says what happens."""

    # Memory
    LATE_MEMORY = "memory shows as free only some time after the unload was answered"
    MEMORY_IN_STEPS = "memory comes back in two steps, the second one late"
    MEMORY_NEVER_BACK = "an unload is answered with success and frees nothing"
    RESIDUAL_LEFT = "an unload frees only a part, more than the residual stays"
    MEMORY_BEFORE_ANSWER = "memory is free long before the unload is answered"
    FOOTPRINT_GREW = "a consumer needs more than its configured footprint from now on"
    FOOTPRINT_SHRANK = "a consumer needs much less than its configured footprint from now on"
    JOB_TAKES_MEMORY = "a job makes its consumer hold more for as long as it is loaded"
    FOREIGN_COMES = "a process of nobody takes memory"
    FOREIGN_GOES = "all foreign memory of a GPU is given back"
    FOREIGN_SPIKE = "a process of nobody takes memory for half a second"
    FOREIGN_DURING_LOAD = "a process of nobody takes memory in the middle of a load"
    # Loads
    LOAD_FAILS = "a load fails half-way"
    LOAD_REFUSED = "nothing listens where a load is sent to, for this once"
    LOAD_HANGS = "a load does nothing until its deadline"
    LOAD_ANSWER_LOST = "a load succeeds, its answer is lost: the deadline reports an error"
    LOAD_LEAVES_MEMORY = "a load fails and its half of the memory stays for some seconds"
    LOAD_SLOW = "a load takes five times as long"
    # Unloads
    UNLOAD_HANGS = "an unload does nothing until its deadline"
    UNLOAD_REFUSED = "an unload is answered with an error at once"
    UNLOAD_ANSWER_LOST = "an unload frees everything, its answer is lost"
    ESCALATION_HANGS = "stopping the unit does nothing until its deadline"
    # Completions
    ANSWER_TWICE = "a load's or unload's completion comes twice"
    ANSWER_OF_OLD_ATTEMPT = "a completion of an attempt that was given up comes during the next"
    END_TWICE = "a lease is released twice"
    END_WITH_OLD_TOKEN = "somebody releases a lease with an old token"
    # Consumers
    DIES_RESIDENT = "an idle consumer's process ends and comes back some time later"
    DIES_IN_JOB = "a consumer's process ends in the middle of a job"
    DIES_LOADING = "a consumer's process ends in the middle of a load"
    DIES_UNLOADING = "a consumer's process ends in the middle of an unload"
    RESTARTS_ITSELF = "a consumer's process ends and is there again at once, empty"
    RESTARTS_LOADED = "a consumer's process ends and its successor loads at once by itself"
    LOADS_ITSELF = "a consumer loads without having been asked"
    UNLOADS_ITSELF = "a consumer unloads without having been asked"
    JOB_FAILS = "a job ends with an error"
    JOB_HANGS = "a job computes for ever"
    # Probes
    PROBE_SAYS_RESIDENT = "a consumer says that it is resident whatever it is"
    PROBE_SAYS_ABSENT = "a consumer says that it is absent whatever it is"
    PROBE_FLAPS = "every other probe finds nothing listening"
    PROBE_UNHEALTHY = "a consumer answers probes, but not well"
    PROBES_STOP = "nobody answers or asks any probe for a while"
    PROBE_LATE = "probes are answered after seconds, about what was then"
    # GPUs
    NVML_LOST = "no GPU can be read for a while"
    NVML_ONE_GPU_LOST = "one GPU cannot be read for a while"
    NVML_HANGS = "readings neither come nor fail for a while"
    NVML_STALE = "readings show the same figures for a while"
    GPU_GONE = "a GPU falls off the bus and comes back"
    # Clients
    LEAVES_QUEUED = "a client leaves while its job waits and nothing is done for it"
    LEAVES_EVICTING = "a client leaves while room is made for its job"
    LEAVES_SETTLING = "a client leaves while the victims' memory is awaited"
    LEAVES_LOADING = "a client leaves while its consumer loads"
    LEAVES_COMPUTING = "a client leaves before the first byte"
    LEAVES_STREAMING = "a client leaves in the middle of its answer"
    LEAVES_AT_THE_END = "a client leaves as its job ends"
    ALL_LEAVE = "all clients of a consumer leave at once"
    LETS_GO_LATE = "a job that was told to stop goes on for seconds"
    BURST = "many jobs for one consumer at once"
    DEADLINE_STORM = "many jobs for everybody that may all wait for the same short time"
    # People
    UNLOAD_BY_HAND = "a person unloads a consumer"
    LOAD_BY_HAND = "a person loads a consumer"
    RESTART_BY_HAND = "a person restarts a consumer, in the middle of its jobs too"
    PIN_BY_HAND = "a person pins a consumer for a while, in which the broker may be killed"
    UNPIN_BY_HAND = "a person unpins a consumer"
    PAUSE = "a person wants the GPU for a while, in which the broker may be killed"
    STATUS_POLL = "somebody looks at everything"
    # The broker and its clock
    BROKER_KILLED = "the broker is killed and starts again while its jobs go on computing"
    BROKER_DRAINS = "the broker is told to stop, drains, and starts again"
    STALL = "the broker's process is stopped for a while: everything that happened comes at once"
    SUSPEND = "the machine sleeps: every client gives up, every process is lost, NVML is late"
    TIMERS_EARLY = "timers fire up to 2 ms early for a while"
    TIMERS_LATE = "timers fire late for a while"


CLIENTS_AND_PEOPLE = frozenset(
    {
        Fault.LEAVES_QUEUED,
        Fault.LEAVES_EVICTING,
        Fault.LEAVES_SETTLING,
        Fault.LEAVES_LOADING,
        Fault.LEAVES_COMPUTING,
        Fault.LEAVES_STREAMING,
        Fault.LEAVES_AT_THE_END,
        Fault.ALL_LEAVE,
        Fault.LETS_GO_LATE,
        Fault.BURST,
        Fault.DEADLINE_STORM,
        Fault.UNLOAD_BY_HAND,
        Fault.LOAD_BY_HAND,
        Fault.PIN_BY_HAND,
        Fault.UNPIN_BY_HAND,
        Fault.PAUSE,
        Fault.STATUS_POLL,
        Fault.JOB_FAILS,
        Fault.JOB_HANGS,
        Fault.END_TWICE,
        Fault.END_WITH_OLD_TOKEN,
        Fault.ANSWER_TWICE,
        Fault.ANSWER_OF_OLD_ATTEMPT,
        Fault.LATE_MEMORY,
        Fault.MEMORY_IN_STEPS,
        Fault.MEMORY_BEFORE_ANSWER,
        Fault.LOAD_SLOW,
        Fault.TIMERS_EARLY,
        Fault.TIMERS_LATE,
        Fault.STALL,
        Fault.PROBES_STOP,
        Fault.PROBE_LATE,
        Fault.PROBE_UNHEALTHY,
    }
)
"""Faults that move no memory behind the scheduler's back: these excuse nothing about memory."""


def label(fault: Fault) -> str:
    """The name people read: ``late-memory``."""
    return fault.name.lower().replace("_", "-")
