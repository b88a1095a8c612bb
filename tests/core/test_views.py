from __future__ import annotations

import pytest

from mgpu.core import views
from mgpu.core.model import ConsumerState
from mgpu.core.views import ConsumerView, GpuView, JobView, WaiterView
from tests.core.playbook import Playbook, absent, resident


def test_a_picture_of_the_gpus() -> None:
    play = Playbook(resident("a", concurrency=2), absent("b", 2000), total_mib=24000)
    play.arrive("0", "b")
    play.memory(15000)
    play.arrive("1", "a")
    play.arrive("2", "a")
    assert play.snapshot().gpus == (
        GpuView(
            index=0,
            uuid="",
            name="",
            healthy=True,
            error=None,
            total_mib=24000,
            free_mib=15000,
            reserved_mib=2000,
            foreign_mib=0,
            lock_consumer="a",
            lock_jobs=("1", "2"),
        ),
    )


def test_a_picture_of_a_gpu_that_does_not_answer_tells_why() -> None:
    play = Playbook(resident("a"))
    play.gpus_lost("timed out")
    (gpu,) = play.snapshot().gpus
    assert (gpu.healthy, gpu.error, gpu.lock_consumer, gpu.lock_jobs) == (
        False,
        "timed out",
        None,
        (),
    )


def test_a_picture_of_the_consumers() -> None:
    play = Playbook(absent("b", pinned=True), resident("a"))
    play.use("a")
    play.after(3.0)
    play.arrive("1", "a")
    play.arrive("2", "a")
    consumers = play.snapshot().consumers
    assert list(consumers) == ["b", "a"]
    assert consumers["a"] == ConsumerView(
        name="a",
        state=ConsumerState.RESIDENT,
        healthy=True,
        footprint_mib=8000,
        measured_mib=None,
        gpus=(0,),
        running=1,
        queued=1,
        last_used_s=3.0,
        pinned=False,
    )
    assert consumers["b"].last_used_s is None
    assert consumers["b"].pinned


def test_a_picture_of_the_queue_in_the_order_of_priority_and_arrival() -> None:
    play = Playbook(resident("a"), absent("b", priority=1))
    for job, consumer in (("0", "a"), ("1", "a"), ("2", "b")):
        play.arrive(job, consumer)
        play.after(1.0)
    assert play.snapshot().queue == (WaiterView("2", "b", 1, 1.0), WaiterView("1", "a", 2, 2.0))
    assert not play.snapshot().paused


def test_a_long_queue_is_counted_whole_and_shown_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "WAITERS_SHOWN", 2)
    play = Playbook(resident("a"))
    for number in range(5):
        play.arrive(str(number), "a")
    snapshot = play.snapshot()
    assert snapshot.queued == 4
    assert [waiter.job for waiter in snapshot.queue] == ["1", "2"]


def test_counters_and_shutdown_are_shown() -> None:
    play = Playbook(resident("a"), absent("b"), total_mib=8000)
    play.arrive("1", "b")
    play.leaves("a")
    play.drain()
    snapshot = play.snapshot()
    assert (snapshot.evictions, snapshot.loads, snapshot.draining) == (1, 1, True)


def test_a_picture_of_each_job_that_has_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "WAITERS_SHOWN", 1)
    play = Playbook(resident("a"))
    for number in range(3):
        play.arrive(str(number), "a", priority=7)
        play.after(1.0)
    running = JobView("0", "a", 7, 0.0, ran_s=3.0)
    first = JobView("1", "a", 7, 2.0, position=1)
    assert views.jobs(play.state, play.now) == (running, first)
    assert [views.job(play.state, name, play.now) for name in "013"] == [running, first, None]
    assert views.job(play.state, "2", play.now) == JobView("2", "a", 7, 1.0)
