"""What a decision costs, in calls: their number is the same on every machine."""

from __future__ import annotations

import math

import pytest

from mgpu.core.model import Order
from tests.core.decisions import KINDS, crowded, in_calls, resident

EVENTS = 15
"""Of each kind; more show the same."""

FEW, MANY = 100, 1000
"""Jobs in the queue: ten times as many cost a decision no more than their logarithm."""


def most(costs: dict[str, list[float]]) -> float:
    return max(max(costs[kind]) for kind in KINDS.values() if kind in costs)


@pytest.mark.parametrize("order", Order)
def test_it_grows_no_faster_than_the_logarithm_of_the_queue(order: Order) -> None:
    few = most(crowded(order, FEW, in_calls, events=EVENTS).costs)
    many = most(crowded(order, MANY, in_calls, events=EVENTS).costs)
    assert many <= few * math.log(MANY) / math.log(FEW)


def test_for_a_resident_target_it_is_a_small_part_of_one_in_a_crowd() -> None:
    alone = most(resident(1, in_calls, events=EVENTS).costs)
    in_a_crowd = most(crowded(Order.PLANNED, FEW, in_calls, events=EVENTS).costs)
    assert alone < in_a_crowd / 20
