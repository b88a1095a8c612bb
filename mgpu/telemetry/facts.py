"""Turns what the scheduler decided and measured into log lines: one per fact, one per job's end.

Durations are logged in seconds, rounded to the millisecond.
"""

from __future__ import annotations

from typing import assert_never

import structlog

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
    SettleTimedOut,
    StateChanged,
    SwapMeasured,
    UnloadMeasured,
)
from mgpu.core.model import ConsumerState

_log = structlog.stdlib.get_logger("mgpu.scheduler")

_TROUBLE = frozenset({ConsumerState.COOLDOWN, ConsumerState.QUARANTINED})


def log_fact(fact: Fact | Finish | Grant) -> None:  # noqa: C901, PLR0912 - one arm a fact
    """Write the line that belongs to ``fact``."""
    match fact:
        case Finish():
            _log_job_end(fact)
        case Grant(job, consumer, token, gpus):
            _log.debug("lease granted", job=job, consumer=consumer, token=token, gpus=list(gpus))
        case StateChanged(consumer, old, new, reason):
            write = _log.warning if new in _TROUBLE else _log.info
            write("state changed", consumer=consumer, old=old.value, new=new.value, reason=reason)
        case Evicted(victim, target, need_mib):
            _log.info("evicting", victim=victim, target=target, need_mib=need_mib)
        case LoadMeasured(consumer, ok, seconds) | UnloadMeasured(consumer, ok, seconds):
            ended = "load ended" if isinstance(fact, LoadMeasured) else "unload ended"
            write = _log.info if ok else _log.warning
            write(ended, consumer=consumer, ok=ok, took_s=_rounded(seconds))
        case SettleTimedOut(consumer, missing_mib):
            _log.warning("memory did not come back", consumer=consumer, missing_mib=missing_mib)
        case GpuHealthChanged(gpu, None):
            _log.info("the GPU answers again", gpu=gpu)
        case GpuHealthChanged(gpu, error):
            _log.error("the GPU does not answer", gpu=gpu, error=error)
        case FootprintLearned(consumer, footprint_mib):
            _log.info("footprint learned", consumer=consumer, footprint_mib=footprint_mib)
        case FootprintWrong(consumer, configured_mib, measured_mib):
            _log.warning(
                "footprint_mib is wrong",
                consumer=consumer,
                configured_mib=configured_mib,
                measured_mib=measured_mib,
                write=f"footprint_mib: {measured_mib}",
            )
        case Measured(consumer, _, footprint_mib, residual_mib):
            _log.debug(
                "measured",
                consumer=consumer,
                footprint_mib=footprint_mib,
                residual_mib=residual_mib,
            )
        case SwapMeasured(target, seconds):
            _log.debug("swap ended", target=target, took_s=_rounded(seconds))
        case LockReleased(gpu, consumer, held_s):
            _log.debug("lock released", gpu=gpu, consumer=consumer, held_s=_rounded(held_s))
        case _:
            assert_never(fact)


def _log_job_end(end: Finish) -> None:
    why = {} if end.refusal is None else {"code": end.refusal.code, "detail": end.refusal.detail}
    _log.info(
        "job ended",
        job=end.job,
        consumer=end.consumer,
        outcome=end.outcome.value,
        queue_s=_rounded(end.phases.queue_s),
        evict_s=_rounded(end.phases.evict_s),
        load_s=_rounded(end.phases.load_s),
        run_s=_rounded(end.run_s),
        **why,
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
