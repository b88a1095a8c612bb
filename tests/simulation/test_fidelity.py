from __future__ import annotations

from dataclasses import replace

from mgpu.core.model import LockMode
from mgpu.simulation.fidelity import left_out
from mgpu.simulation.workload import Rules
from tests.simulation.tiny import ABA, service, trace


def test_a_trace_without_rules_is_simulated_whole() -> None:
    assert list(left_out(trace(*ABA))) == []


def test_the_baselines_say_which_rules_they_do_without() -> None:
    services = (service("a", rules=Rules(concurrency=4, pinned=True)), service("b"))
    never, eager = left_out(replace(trace(*ABA, services=services), lock=LockMode.SHARED))
    assert never.startswith("never loads: ")
    assert never.endswith("without gpu.lock: shared, concurrency")
    assert eager == "eager: does without gpu.lock: shared, concurrency, pinned"


def test_of_several_gpus_there_is_no_eager() -> None:
    services = (service("a", rules=Rules(pinned=True)), service("b"))
    assert list(left_out(trace(*ABA, services=services, total_mib=(1000, 1000)))) == []


def test_memory_and_loads_that_nobody_can_see_are_named() -> None:
    services = (
        service("a", rules=Rules(vram_managed=True)),
        service("b", rules=Rules(can_load=False, can_unload=False)),
    )
    managed, lazy, eager = left_out(trace(*ABA, services=services))
    assert managed.startswith("a: vram_managed")
    assert lazy.startswith("b: loaded by the first job")
    assert "cannot be unloaded" in eager
