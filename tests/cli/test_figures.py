"""What cycles amount to: footprint, residual, and whether they are certain."""

from __future__ import annotations

from typing import Any

from mgpu.cli.figures import Cycle, figures


def cycle(before: int, low: int, after: int, **keys: Any) -> Cycle:
    times = {"load_s": 1.0, "job_s": None, "unload_s": 0.5}
    held = {"held_peak_mib": None, "held_after_mib": None}
    return Cycle(before, low, after, **{**times, **held, **keys})


def test_what_its_processes_hold_is_believed_rather_than_what_is_free() -> None:
    done = [cycle(8000, 100, 200, held_peak_mib=peak, held_after_mib=300) for peak in (5, 9, 7)]

    found = figures(done, 3, was_absent=False, configured_residual_mib=1)

    assert (found.footprint_mib, found.residual_mib, found.doubts) == (7, 300, ())


def test_by_free_memory_what_the_first_load_left_behind_is_held_from_then_on() -> None:
    done = [cycle(8000, 4000, 7700), cycle(7700, 4000, 7700)]

    found = figures(done, 2, was_absent=True, configured_residual_mib=0)

    assert [footprint for _, footprint in found.counted] == [4000, 4000]
    assert found.residual_mib == 300


def test_by_free_memory_one_that_was_resident_held_what_is_configured() -> None:
    found = figures([cycle(8000, 4000, 8000)], 1, was_absent=False, configured_residual_mib=250)

    assert (found.footprint_mib, found.residual_mib) == (4250, None)


def test_doubtful_cycles_do_not_count_and_make_the_residual_doubtful() -> None:
    done = [cycle(8000, 4000, 7700), cycle(7700, 1000, 4700, doubts=("x",))]

    found = figures(done, 1, was_absent=True, configured_residual_mib=0)

    assert (found.footprint_mib, found.residual_mib, found.doubts) == (4000, None, ())
    assert figures(done, 2, was_absent=True, configured_residual_mib=0).doubts == ("x",)
