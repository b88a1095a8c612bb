from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from mgpu.config.model import ConsumerConfig
from mgpu.core.effects import (
    Evicted,
    Fact,
    Finish,
    Grant,
    LoadMeasured,
    LockReleased,
    Phases,
    SettleTimedOut,
    StateChanged,
    SwapMeasured,
    UnloadMeasured,
)
from mgpu.core.model import ConsumerState, Outcome
from mgpu.core.views import ConsumerView, GpuView, Snapshot
from mgpu.telemetry.metrics import Metrics

GIB = 1024
IN_BYTES = 1024 * 1024

GPU = GpuView(
    index=0,
    uuid="GPU-0",
    name="Simulated",
    healthy=True,
    error=None,
    total_mib=24 * GIB,
    free_mib=10 * GIB,
    reserved_mib=2 * GIB,
    foreign_mib=GIB,
    lock_consumer="tts",
    lock_jobs=("j1",),
)
TTS = ConsumerView(
    name="tts",
    state=ConsumerState.RESIDENT,
    healthy=True,
    footprint_mib=2500,
    measured_mib=2500,
    gpus=(0,),
    running=1,
    queued=3,
    last_used_s=4.0,
    pinned=False,
)
STT = replace(
    TTS,
    name="stt",
    state=ConsumerState.ABSENT,
    healthy=False,
    measured_mib=None,
    running=0,
    queued=0,
)

CONSUMERS = {
    "tts": ConsumerConfig(url="http://127.0.0.1:1", footprint_mib=2400),
    "stt": ConsumerConfig(url="http://127.0.0.1:2", footprint_mib=3100),
}


class Broker:
    """What the metrics see of the broker: its snapshot and its clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.snapshot = Snapshot(
            gpus=(GPU,),
            consumers={"tts": TTS, "stt": STT},
            queue=(),
            queued=3,
            draining=False,
            evictions=0,
            loads=0,
        )
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry, CONSUMERS, clock=lambda: self.now)
        self.metrics.watch(lambda: self.snapshot)

    def series(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        text = generate_latest(self.registry).decode()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        return self.series()[name, frozenset(labels.items())]


@pytest.fixture
def broker() -> Broker:
    return Broker()


def finish(consumer: str, outcome: Outcome, wait_s: float = 0.0, run_s: float = 0.0) -> Finish:
    return Finish("j", consumer, outcome, None, Phases(queue_s=wait_s), run_s)


def test_every_series_that_can_be_known_is_there_from_the_start_with_0(broker: Broker) -> None:
    for outcome in Outcome:
        assert broker.value("mgpu_jobs_total", consumer="stt", outcome=outcome.value) == 0
    assert broker.value("mgpu_loads_total", consumer="stt", outcome="failed") == 0
    assert broker.value("mgpu_unloads_total", consumer="stt", outcome="done") == 0
    assert broker.value("mgpu_evictions_total", victim="tts", target="stt") == 0
    assert broker.value("mgpu_settle_timeouts_total", consumer="stt") == 0
    assert broker.value("mgpu_swap_seconds_count", target="stt") == 0
    assert broker.value("mgpu_lock_held_seconds_total", gpu="0", consumer="stt") == 0


def test_a_jobs_end_is_counted_with_its_wait_and_its_run(broker: Broker) -> None:
    phases = Phases(queue_s=1.0, evict_s=0.5, load_s=2.0)
    broker.metrics.observe(Finish("j", "tts", Outcome.DONE, None, phases, 7.0))
    assert broker.value("mgpu_jobs_total", consumer="tts", outcome="done") == 1
    assert broker.value("mgpu_queue_wait_seconds_sum", consumer="tts") == 3.5
    assert broker.value("mgpu_job_seconds_sum", consumer="tts") == 7.0


def test_a_job_that_expired_counts_as_a_wait_and_not_as_a_run(broker: Broker) -> None:
    broker.metrics.observe(finish("tts", Outcome.EXPIRED, wait_s=600.0))
    assert broker.value("mgpu_jobs_total", consumer="tts", outcome="expired") == 1
    assert broker.value("mgpu_queue_wait_seconds_sum", consumer="tts") == 600.0
    assert broker.value("mgpu_job_seconds_count", consumer="tts") == 0


def test_a_rejected_job_does_not_make_the_waits_look_short(broker: Broker) -> None:
    broker.metrics.observe(finish("tts", Outcome.REJECTED))
    assert broker.value("mgpu_jobs_total", consumer="tts", outcome="rejected") == 1
    assert broker.value("mgpu_queue_wait_seconds_count", consumer="tts") == 0


def test_loads_and_unloads_are_counted_and_the_successful_ones_timed(broker: Broker) -> None:
    for ok in (True, False):
        broker.metrics.observe(LoadMeasured("tts", ok=ok, seconds=3.0))
        broker.metrics.observe(UnloadMeasured("tts", ok=ok, seconds=1.5))
    for name in ("load", "unload"):
        assert broker.value(f"mgpu_{name}s_total", consumer="tts", outcome="done") == 1
        assert broker.value(f"mgpu_{name}s_total", consumer="tts", outcome="failed") == 1
        assert broker.value(f"mgpu_{name}_seconds_count", consumer="tts") == 1
    assert broker.value("mgpu_load_seconds_sum", consumer="tts") == 3.0
    assert broker.value("mgpu_unload_seconds_sum", consumer="tts") == 1.5


def test_a_load_that_the_first_job_does_is_counted_and_not_timed(broker: Broker) -> None:
    broker.metrics.observe(LoadMeasured("tts", ok=True, seconds=None))
    assert broker.value("mgpu_loads_total", consumer="tts", outcome="done") == 1
    assert broker.value("mgpu_load_seconds_count", consumer="tts") == 0


def test_evictions_swaps_and_settle_timeouts_are_counted(broker: Broker) -> None:
    broker.metrics.observe(Evicted("stt", "tts", 2400))
    broker.metrics.observe(SwapMeasured("tts", 5.0))
    broker.metrics.observe(SettleTimedOut("stt", 100))
    assert broker.value("mgpu_evictions_total", victim="stt", target="tts") == 1
    assert broker.value("mgpu_swap_seconds_sum", target="tts") == 5.0
    assert broker.value("mgpu_settle_timeouts_total", consumer="stt") == 1


def test_a_consumer_that_the_config_does_not_name_makes_no_series(broker: Broker) -> None:
    before = broker.series().keys()
    intruder = "from-a-request"
    facts: list[Fact | Finish | Grant] = [
        finish(intruder, Outcome.REJECTED),
        Grant("j", intruder, 1, (0,), Phases()),
        LockReleased(0, intruder, 1.0),
        Evicted(intruder, "tts", 1),
        Evicted("tts", intruder, 1),
        LoadMeasured(intruder, ok=True, seconds=1.0),
        UnloadMeasured(intruder, ok=True, seconds=1.0),
        SwapMeasured(intruder, 1.0),
        SettleTimedOut(intruder, 1),
        StateChanged(intruder, ConsumerState.ABSENT, ConsumerState.LOADING, ""),
    ]
    for fact in facts:
        broker.metrics.observe(fact)
    consumers = {**broker.snapshot.consumers, intruder: replace(TTS, name=intruder)}
    broker.snapshot = replace(broker.snapshot, consumers=consumers)
    assert broker.series().keys() == before


def test_gauges_say_what_the_snapshot_says_at_the_scrape(broker: Broker) -> None:
    assert broker.value("mgpu_queue_depth", consumer="tts") == 3
    assert broker.value("mgpu_jobs_running", consumer="tts") == 1
    assert broker.value("mgpu_consumer_up", consumer="tts") == 1
    assert broker.value("mgpu_consumer_up", consumer="stt") == 0
    consumers = {"tts": replace(TTS, queued=0), "stt": STT}
    broker.snapshot = replace(broker.snapshot, consumers=consumers)
    assert broker.value("mgpu_queue_depth", consumer="tts") == 0


def test_a_consumer_is_in_exactly_one_state(broker: Broker) -> None:
    states = {
        state: broker.value("mgpu_consumer_state", consumer="tts", state=state.value)
        for state in ConsumerState
    }
    assert states == {state: float(state is ConsumerState.RESIDENT) for state in ConsumerState}


def test_footprints_are_in_bytes_and_missing_until_measured(broker: Broker) -> None:
    name = "mgpu_consumer_footprint_bytes"
    assert broker.value(name, consumer="tts", source="configured") == 2400 * IN_BYTES
    assert broker.value(name, consumer="tts", source="measured") == 2500 * IN_BYTES
    unmeasured = frozenset({("consumer", "stt"), ("source", "measured")})
    assert (name, unmeasured) not in broker.series()


def test_a_gpus_memory_is_in_bytes(broker: Broker) -> None:
    expected_gib = {"total": 24, "free": 10, "reserved": 2, "foreign": 1}
    for kind, gib in expected_gib.items():
        found = broker.value("mgpu_gpu_memory_bytes", gpu="0", kind=kind)
        assert found == gib * GIB * IN_BYTES


def test_a_gpu_that_was_never_read_is_down_and_has_no_figures(broker: Broker) -> None:
    never_read = replace(GPU, healthy=False, total_mib=0, free_mib=0)
    broker.snapshot = replace(broker.snapshot, gpus=(never_read,))
    assert broker.value("mgpu_gpu_up", gpu="0") == 0
    assert "mgpu_gpu_memory_bytes" not in {name for name, _ in broker.series()}


def test_a_gpu_that_is_lost_is_down_and_keeps_its_last_figures(broker: Broker) -> None:
    broker.snapshot = replace(broker.snapshot, gpus=(replace(GPU, healthy=False),))
    assert broker.value("mgpu_gpu_up", gpu="0") == 0
    assert broker.value("mgpu_gpu_memory_bytes", gpu="0", kind="free") == 10 * GIB * IN_BYTES


def test_a_hold_of_the_lock_counts_while_it_lasts(broker: Broker) -> None:
    def held_s() -> float:
        return broker.value("mgpu_lock_held_seconds_total", gpu="0", consumer="tts")

    broker.metrics.observe(Grant("j1", "tts", 1, (0,), Phases()))
    broker.now = 10.0
    assert held_s() == 10.0
    broker.metrics.observe(Grant("j2", "tts", 2, (0,), Phases()))
    broker.now = 15.0
    broker.metrics.observe(LockReleased(0, "tts", 15.0))
    broker.now = 100.0
    assert held_s() == 15.0


def test_the_time_the_lock_was_held_never_goes_back(broker: Broker) -> None:
    def held_s() -> float:
        return broker.value("mgpu_lock_held_seconds_total", gpu="0", consumer="tts")

    broker.metrics.observe(Grant("j1", "tts", 1, (0,), Phases()))
    broker.now = 2.0
    assert held_s() == 2.0
    broker.metrics.observe(LockReleased(0, "tts", 1.999))
    assert held_s() == 2.0


def test_a_decision_of_a_microsecond_has_a_bucket_of_its_own(broker: Broker) -> None:
    broker.metrics.observe_decision(1e-6)
    assert broker.value("mgpu_scheduler_decision_seconds_bucket", le="1e-06") == 1


def test_no_kind_of_fact_is_refused(broker: Broker) -> None:
    fields = {
        "consumer": "tts",
        "victim": "stt",
        "target": "tts",
        "old": ConsumerState.ABSENT,
        "new": ConsumerState.LOADING,
        "reason": "job",
        "need_mib": 1,
        "ok": True,
        "seconds": 1.0,
        "missing_mib": 1,
        "footprint_mib": 1,
        "gpus": (0,),
        "residual_mib": 1,
        "configured_mib": 1,
        "measured_mib": 1,
        "gpu": 0,
        "error": None,
        "held_s": 1.0,
    }
    before = broker.series().keys()
    for kind in get_args(Fact):
        broker.metrics.observe(kind(**{name: fields[name] for name in kind.__match_args__}))
    assert broker.series().keys() == before
