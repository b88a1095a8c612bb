"""When a waiting job can expect to begin, from what jobs, loads and unloads took before.

The queue is played through once (``mgpu.core.forecast``), in the order that ``mgpu.core.positions``
foresees. What a consumer has not shown yet is taken from the average of those that have; before
anything has been measured there is no estimate. It is made when somebody asks, never for a
decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mgpu.core.effects import Effect, Finish, UnloadMeasured
from mgpu.core.forecast import Forecast
from mgpu.core.jobs import Job
from mgpu.core.model import Outcome
from mgpu.core.state import Consumer, State

RETRY_S = 2.0
"""When to come back before anything has been measured: about one short job later."""
RETRY_LEAST_S = 1.0
RETRY_MOST_S = 60.0


def learn(state: State, effects: Iterable[Effect]) -> None:
    """Keep what was measured in one step; loads are ``mgpu.core.bandwidth``'s."""
    for effect in effects:
        match effect:
            case Finish(outcome=Outcome.DONE) if effect.run_s > 0:
                state.consumers[effect.consumer].averages.job.add(effect.run_s)
            case UnloadMeasured(name, True, seconds):
                state.consumers[name].averages.unload.add(seconds)
            case _:
                pass


def etas_s(state: State, jobs: Sequence[Job], at: float) -> list[float | None]:
    """Seconds until each of the jobs begins, were they served in this order."""
    if state.paused:
        return [None] * len(jobs)
    forecast = Forecast(state, at)
    return [forecast.take(state.consumers[job.consumer]) for job in jobs]


def next_start_s(state: State, consumer: Consumer, at: float) -> float:
    """Seconds until a consumer's next job begins, were it served next: then a place is free."""
    eta_s = Forecast(state, at).take(consumer)
    return RETRY_S if eta_s is None else min(max(eta_s, RETRY_LEAST_S), RETRY_MOST_S)
