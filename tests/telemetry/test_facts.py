from __future__ import annotations

from typing import get_args

import pytest
from structlog.testing import capture_logs

from mgpu.core.effects import (
    Evicted,
    Fact,
    Finish,
    FootprintLearned,
    FootprintWrong,
    GpuHealthChanged,
    Grant,
    LoadMeasured,
    LockReleased,
    Measured,
    Phases,
    SettleTimedOut,
    StateChanged,
    SwapMeasured,
    UnloadMeasured,
)
from mgpu.core.model import ConsumerState, Outcome, Refusal
from mgpu.telemetry.facts import log_fact

FACTS: list[tuple[Fact | Grant, str, str]] = [
    (Grant("j1", "tts", 17, (0,), Phases()), "debug", "17"),
    (StateChanged("tts", ConsumerState.ABSENT, ConsumerState.LOADING, "job"), "info", "loading"),
    (
        StateChanged("tts", ConsumerState.LOADING, ConsumerState.COOLDOWN, "500"),
        "warning",
        "cooldown",
    ),
    (Evicted("stt", "tts", 2400), "info", "stt"),
    (LoadMeasured("tts", ok=True, seconds=1.23456), "info", "1.235"),
    (LoadMeasured("tts", ok=False, seconds=1.0), "warning", "tts"),
    (LoadMeasured("tts", ok=True, seconds=None), "info", "None"),
    (UnloadMeasured("tts", ok=True, seconds=0.5), "info", "0.5"),
    (UnloadMeasured("tts", ok=False, seconds=0.5), "warning", "tts"),
    (SettleTimedOut("tts", 300), "warning", "300"),
    (FootprintLearned("tts", 2600), "info", "2600"),
    (Measured("tts", (0,), 2600, 400), "debug", "2600"),
    (FootprintWrong("tts", 2400, 3100), "warning", "footprint_mib: 3100"),
    (GpuHealthChanged(0, "fell off the bus"), "error", "fell off the bus"),
    (GpuHealthChanged(0, None), "info", "the GPU answers again"),
    (SwapMeasured("tts", 2.0), "debug", "2.0"),
    (LockReleased(0, "tts", 4.0), "debug", "4.0"),
]


@pytest.mark.parametrize(("fact", "level", "told"), FACTS)
def test_a_fact_is_one_line(fact: Fact | Grant, level: str, told: str) -> None:
    with capture_logs() as written:
        log_fact(fact)
    [line] = written
    assert line["log_level"] == level
    assert told in map(str, line.values())


def test_no_kind_of_fact_is_left_out_above() -> None:
    assert {type(fact) for fact, _, _ in FACTS} == {*get_args(Fact), Grant}


def test_a_jobs_end_is_one_line_with_where_its_time_went() -> None:
    refusal = Refusal("wait-expired", "waited 600 s")
    with capture_logs() as written:
        log_fact(Finish("j1", "tts", Outcome.EXPIRED, refusal, Phases(599.0004, 0.5, 0.25), 0.0))
        log_fact(Finish("j2", "tts", Outcome.DONE, None, Phases(), 1.5))
    assert written[0] == {
        "event": "job ended",
        "log_level": "info",
        "job": "j1",
        "consumer": "tts",
        "outcome": "expired",
        "code": "wait-expired",
        "detail": "waited 600 s",
        "queue_s": 599.0,
        "evict_s": 0.5,
        "load_s": 0.25,
        "run_s": 0.0,
    }
    assert "code" not in written[1]
