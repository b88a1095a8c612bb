"""Whether loads that run side by side hold each other up.

Weights come through one disk and one bus. Where those are the bottleneck, two loads at once take
twice as long and the first to be through is later than it had to be; where they are not, the second
load costs nothing. Which it is shows in the times: a load that ran partly beside another one, by a
consumer that has been seen to load alone, is compared with what it takes alone.
"""

from __future__ import annotations

from mgpu.core.averages import Average
from mgpu.core.model import Order
from mgpu.core.state import Consumer, State, Swap
from mgpu.core.step import Step

ALONE_FRACTION = 0.05
"""A load that ran beside others for less of its time than this ran alone."""

NEWEST = 0.25
"""The weight of the newest loss: two loads side by side tell whether it is one."""

TOLERABLE_LOSS = 0.25
"""Seconds lost by each second beside another load, up to which loads run side by side. Loads that
share evenly lose 0.5, and what is gained by the second is gone at half of that."""


def watch(step: Step) -> None:
    """Keep count of how long each load under way has not been alone; before anything else."""
    state = step.state
    loading = [swap for swap in state.swaps.values() if swap.load_started_at is not None]
    if len(loading) > 1:
        for swap in loading:
            swap.beside_s += step.at - state.handled_at
    state.handled_at = step.at


def learn(state: State, consumer: Consumer, swap: Swap, seconds: float) -> None:
    """Take in how long a load took.

    One in company tells what company costs; how long the consumer takes, only until it has been
    seen to load alone.
    """
    averages = consumer.averages
    alone_s = averages.load.seconds
    if swap.beside_s <= ALONE_FRACTION * seconds:
        if not averages.loaded_alone:
            averages.load = Average()
        averages.loaded_alone = True
        averages.load.add(seconds)
    elif averages.loaded_alone and alone_s is not None:
        loss = (seconds - alone_s) / swap.beside_s
        state.load_loss += NEWEST * (min(1.0, max(0.0, loss)) - state.load_loss)
    else:
        averages.load.add(seconds)


def most_loads(state: State) -> int:
    """How many consumers may be on their way into VRAM at once.

    ``planned`` takes one after the other where they hold each other up.
    """
    policy = state.policy
    one_by_one = policy.order is Order.PLANNED and state.load_loss > TOLERABLE_LOSS
    return 1 if one_by_one else policy.max_parallel_loads
