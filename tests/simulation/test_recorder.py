from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mgpu.core import views
from mgpu.core.effects import (
    Evicted,
    Fact,
    Finish,
    Grant,
    LoadMeasured,
    Measured,
    Phases,
    StateChanged,
    UnloadMeasured,
)
from mgpu.core.events import Event, GpusRead, JobArrived, JobEnded, LoadEnded
from mgpu.core.model import (
    ConsumerPolicy,
    ConsumerState,
    GpuReading,
    LockMode,
    Outcome,
    Policy,
)
from mgpu.core.scheduler import Scheduler
from mgpu.errors import ConfigError
from mgpu.simulation import traces
from mgpu.simulation.recorder import MOST_BYTES, TraceRecorder
from mgpu.simulation.workload import Arrival, Rules

RESIDENT, ABSENT = ConsumerState.RESIDENT, ConsumerState.ABSENT
POLICY = Policy(
    consumers={
        "tts": ConsumerPolicy(name="tts", footprint_mib=3000, initially=ABSENT),
        "image": ConsumerPolicy(name="image", footprint_mib=9000, gpus=(3,), initially=RESIDENT),
        "ollama": ConsumerPolicy(name="ollama", footprint_mib=1, vram_managed=True),
    },
    cushion_mib=300,
)
GRANT = Grant("j1", "tts", 1, (1,), Phases())


class Clock:
    def __init__(self) -> None:
        self.at = 100.0

    def now(self) -> float:
        return self.at


def end(
    job: str = "j1",
    *,
    run_s: float = 2.0,
    phases: Phases = Phases(),  # noqa: B008 - it is frozen
    priority: int = 0,
) -> Finish:
    return Finish(job, "tts", Outcome.DONE, None, phases, run_s, priority)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def start(tmp_path: Path, clock: Clock) -> Callable[..., TraceRecorder]:
    scheduler = Scheduler(POLICY)
    readings = tuple(
        GpuReading(index=i, total_mib=t, free_mib=9) for i, t in ((1, 8000), (3, 16000))
    )
    scheduler.handle(GpusRead(0.0, readings))

    def start(path: Path = tmp_path / "trace.jsonl", most_bytes: int = MOST_BYTES) -> TraceRecorder:
        return TraceRecorder(
            path,
            policy=POLICY,
            snapshot=lambda: views.take(scheduler.state, clock.now()),
            clock=clock,
            most_bytes=most_bytes,
        )

    return start


Start = Callable[..., TraceRecorder]


def test_a_recording_can_be_replayed(tmp_path: Path, clock: Clock, start: Start) -> None:
    recorder = start()
    recorder.observe(StateChanged("tts", ABSENT, ConsumerState.LOADING, "room made"))
    recorder.observe(LoadMeasured("tts", True, 3.0))
    recorder.observe(Evicted("image", "tts", 1))
    recorder.observe(UnloadMeasured("image", True, 0.25))
    recorder.observe(GRANT)
    clock.at = 110.0
    recorder.observe(end(phases=Phases(1.0, 2.0, 3.0), priority=4))
    recorder.close()

    read = traces.read(tmp_path / "trace.jsonl")

    # It ended 10 s after the start, computed for 2 s and waited for 6 s.
    assert read.trace.arrivals == (Arrival(2.0, "tts", 2.0, 4),)
    assert read.trace.total_mib == (8000, 16000)
    assert read.trace.cushion_mib == 300
    assert read.trace.resident == ("image", "ollama")
    tts, image, ollama = read.trace.services.values()
    assert (tts.footprint_mib, tts.load_s, tts.gpus) == (3000, 3.0, None)
    assert (image.footprint_mib, image.unload_s, image.gpus) == (9000, 0.25, (1,))
    assert (ollama.footprint_mib, ollama.load_s) == (0, 0.0)
    assert read.unknown == ("image",)


def test_what_never_computed_or_failed_to_load_leaves_no_line(tmp_path: Path, start: Start) -> None:
    recorder = start()
    recorder.observe(GRANT)
    recorder.observe(end(run_s=0.0))
    recorder.observe(LoadMeasured("tts", False, 3.0))
    recorder.observe(LoadMeasured("image", True, None))
    recorder.observe(UnloadMeasured("tts", False, 3.0))
    recorder.close()
    assert len((tmp_path / "trace.jsonl").read_text().splitlines()) == 1


def test_a_footprint_that_is_measured_while_it_records_counts(tmp_path: Path, clock: Clock) -> None:
    auto = ConsumerPolicy(name="tts", footprint_mib=0, learns=True, initially=ABSENT)
    policy = Policy(consumers={"tts": auto})
    scheduler = Scheduler(policy)
    path = tmp_path / "trace.jsonl"
    recorder = TraceRecorder(
        path, policy=policy, snapshot=lambda: views.take(scheduler.state, clock.now()), clock=clock
    )

    def happens(event: Event) -> None:
        for effect in scheduler.handle(event):
            if isinstance(effect, Fact | Finish | Grant):
                recorder.observe(effect)

    def read(at: float, free_mib: int) -> GpusRead:
        return GpusRead(at, (GpuReading(index=0, total_mib=8000, free_mib=free_mib),))

    happens(read(100.0, 8000))
    happens(JobArrived(100.0, "j1", "tts"))
    happens(read(101.0, 5000))
    assert scheduler.state.consumers["tts"].footprint_mib > 7000, "it may need all there is"
    happens(LoadEnded(102.0, "tts", 1))
    happens(read(102.0, 5000))
    happens(JobEnded(104.0, "j1", 1, Outcome.DONE))
    recorder.close()

    assert '"footprint_mib": null' in path.read_text().splitlines()[0]
    recording = traces.read(path)
    assert recording.trace.services["tts"].footprint_mib == 3000
    assert recording.unmeasured == ()


def test_a_kept_measurement_is_written_down_once_it_changes(tmp_path: Path, start: Start) -> None:
    recorder = start()
    recorder.observe(GRANT)
    recorder.observe(Measured("tts", (1,), 4000, 0))
    recorder.observe(Measured("tts", (1,), 3500, 0))
    recorder.observe(end())
    recorder.close()
    trace = traces.read(tmp_path / "trace.jsonl").trace
    assert trace.services["tts"].footprint_mib == 3500


def test_the_rules_that_matter_to_a_replay_are_in_the_header(tmp_path: Path, clock: Clock) -> None:
    tts = ConsumerPolicy(
        name="tts",
        footprint_mib=3000,
        residual_mib=200,
        can_coexist_with=frozenset({"image"}),
        concurrency=4,
        pinned=True,
        idle_unload_s=60.0,
    )
    lazy = ConsumerPolicy(name="image", footprint_mib=900, can_load=False, can_unload=False)
    ollama = ConsumerPolicy(
        name="ollama", footprint_mib=1, vram_managed=True, can_load=False, can_unload=False
    )
    policy = Policy(consumers={c.name: c for c in (tts, lazy, ollama)}, lock=LockMode.SHARED)
    scheduler = Scheduler(policy)
    scheduler.handle(GpusRead(0.0, (GpuReading(index=0, total_mib=8000, free_mib=8000),)))
    path = tmp_path / "trace.jsonl"
    recorder = TraceRecorder(
        path, policy=policy, snapshot=lambda: views.take(scheduler.state, clock.now()), clock=clock
    )
    recorder.observe(GRANT)
    recorder.observe(end())
    recorder.close()

    trace = traces.read(path).trace
    assert trace.lock is LockMode.SHARED
    assert {name: service.rules for name, service in trace.services.items()} == {
        "tts": Rules(
            concurrency=4,
            can_coexist_with=frozenset({"image"}),
            residual_mib=200,
            pinned=True,
            idle_unload_s=60.0,
        ),
        "image": Rules(can_load=False, can_unload=False),
        "ollama": Rules(vram_managed=True),
    }


def test_nothing_happened_nothing_written(tmp_path: Path, start: Start) -> None:
    recorder = start()
    recorder.observe(StateChanged("tts", ConsumerState.UNKNOWN, ABSENT, "says so"))
    recorder.close()
    assert (tmp_path / "trace.jsonl").read_text() == ""


def test_a_file_that_has_grown_to_its_bound_is_put_aside(tmp_path: Path, start: Start) -> None:
    recorder = start(most_bytes=1000)
    recorder.observe(GRANT)
    for number in range(40):
        recorder.observe(end(f"j{number}"))
    recorder.close()
    files = sorted(tmp_path.glob("trace.jsonl*"))
    assert [file.name for file in files] == ["trace.jsonl", "trace.jsonl.1"]
    for file in files:
        assert file.stat().st_size <= 1000
        assert traces.read(file).trace.arrivals


def test_an_earlier_recording_is_put_aside_at_the_start(tmp_path: Path, start: Start) -> None:
    (tmp_path / "trace.jsonl").write_text("earlier")
    start().close()
    assert (tmp_path / "trace.jsonl.1").read_text() == "earlier"


def test_a_place_that_cannot_be_written_is_refused_at_the_start(
    tmp_path: Path, start: Start
) -> None:
    with pytest.raises(ConfigError, match=r"jobs.trace: .*nowhere"):
        start(tmp_path / "nowhere" / "trace.jsonl")


def test_what_is_no_file_stays_where_it_is(tmp_path: Path, start: Start) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    start(pipe).close()
    os.close(reader)
    assert sorted(tmp_path.iterdir()) == [pipe]


def test_a_disk_that_is_full_ends_the_recording_and_nothing_else(
    tmp_path: Path, start: Start
) -> None:
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    with capture_logs() as logs:
        recorder = start(full)
        recorder.observe(GRANT)
        recorder.observe(end())
        recorder.close()
    assert logs[0]["event"] == "the trace ends here"
    assert logs[0]["error"] == "No space left on device"
    assert full.is_symlink()
