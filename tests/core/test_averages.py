from __future__ import annotations

import pytest

from mgpu.core.averages import LATEST, Average


def test_before_the_first_sample_nothing_is_known() -> None:
    assert Average().seconds is None


def test_the_first_sample_is_the_average() -> None:
    average = Average()
    average.add(8.0)
    assert average.seconds == 8.0


def test_at_first_all_samples_count_alike() -> None:
    average = Average()
    for sample_s in (8.0, 4.0, 6.0):
        average.add(sample_s)
    assert average.seconds == pytest.approx(6.0)


def test_later_ones_count_more_than_those_long_ago() -> None:
    average = Average()
    for _ in range(1000):
        average.add(8.0)
    for _ in range(LATEST):
        average.add(4.0)
    assert average.seconds == pytest.approx(4.0 + 4.0 * 0.9**LATEST)
