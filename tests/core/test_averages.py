from __future__ import annotations

import pytest

from mgpu.core.averages import Average


def test_before_the_first_sample_nothing_is_known() -> None:
    assert Average().seconds is None


def test_the_first_sample_is_the_average() -> None:
    average = Average()
    average.add(8.0)
    assert average.seconds == 8.0


def test_later_samples_pull_it_their_way() -> None:
    average = Average(8.0)
    average.add(4.0)
    assert average.seconds == 7.0
    for _ in range(20):
        average.add(4.0)
    assert average.seconds == pytest.approx(4.0, abs=0.02)
