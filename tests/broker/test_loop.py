from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from mgpu.broker.loop import Loop
from mgpu.core.effects import Effect, Finish, Grant
from mgpu.core.events import Event, GpusRead, JobArrived, JobEnded
from mgpu.core.model import ConsumerPolicy, ConsumerState, GpuReading, Outcome, Policy
from mgpu.core.scheduler import Scheduler

READING = GpusRead(0.0, (GpuReading(index=0, total_mib=10_000, free_mib=10_000),))


def scheduler() -> Scheduler:
    consumer = ConsumerPolicy(name="a", footprint_mib=1, initially=ConsumerState.RESIDENT)
    return Scheduler(Policy(consumers={"a": consumer}))


def test_hands_on_every_effect_in_order() -> None:
    effects: list[Effect] = []
    loop = Loop(scheduler(), effects.append, lambda _: None)
    loop.post(READING)
    loop.post(JobArrived(1.0, "1", "a"))
    assert [type(effect).__name__ for effect in effects[-2:]] == ["SetTimer", "Grant"]


def test_an_event_posted_by_an_effect_is_handled_after_it() -> None:
    trace: list[str] = []

    def run(effect: Effect) -> None:
        trace.append(type(effect).__name__)
        if isinstance(effect, Grant):
            loop.post(JobEnded(2.0, effect.job, effect.token, Outcome.DONE))
            assert not any(name == "Finish" for name in trace)

    loop = Loop(scheduler(), run, lambda _: None)
    loop.post(READING)
    loop.post(JobArrived(1.0, "1", "a"))
    assert trace[-1] == "Finish"


def test_times_every_decision() -> None:
    seconds: list[float] = []
    loop = Loop(scheduler(), lambda _: None, seconds.append)
    loop.post(READING)
    loop.post(JobArrived(1.0, "1", "a"))
    assert len(seconds) == 2
    assert all(s > 0 for s in seconds)


def test_a_broken_effect_is_logged_and_the_others_still_run() -> None:
    ran: list[Effect] = []

    def run(effect: Effect) -> None:
        if isinstance(effect, Grant):
            raise RuntimeError("a bug")  # noqa: TRY004
        ran.append(effect)

    loop = Loop(scheduler(), run, lambda _: None)
    loop.post(READING)
    with capture_logs() as logs:
        loop.post(JobArrived(1.0, "1", "a"))
        loop.post(JobEnded(2.0, "1", 1, Outcome.DONE))
    assert [entry["event"] for entry in logs] == ["an effect broke"]
    assert any(isinstance(effect, Finish) for effect in ran)


def test_a_broken_decision_is_logged_and_the_next_event_is_handled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    brain = scheduler()
    handle = brain.handle

    def broken_once(event: Event) -> list[Effect]:
        if isinstance(event, JobEnded):
            raise RuntimeError("a bug")  # noqa: TRY004
        return handle(event)

    monkeypatch.setattr(brain, "handle", broken_once)
    effects: list[Effect] = []
    loop = Loop(brain, effects.append, lambda _: None)
    with capture_logs() as logs:
        loop.post(JobEnded(0.0, "1", 1, Outcome.DONE))
        loop.post(READING)
        loop.post(JobArrived(1.0, "1", "a"))
    assert [entry["event"] for entry in logs] == ["a decision broke"]
    assert any(isinstance(effect, Grant) for effect in effects)
