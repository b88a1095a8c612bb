from __future__ import annotations

from collections import Counter
from itertools import groupby

import pytest

from mgpu.simulation.workload import GIB, MIXES, Arrivals, make_trace

POISSON, BURSTS, BACKLOG = Arrivals.POISSON, Arrivals.BURSTS, Arrivals.BACKLOG


@pytest.mark.parametrize(
    ("mix", "total_gib", "rows"),
    [
        (
            "homelab",
            24,
            {
                "image": (13, 12, 1, 15, 1),
                "speech": (3, 3, 0.5, 1, 6),
                "transcription": (2, 2, 0.5, 2, 4),
                "language": (9, 6, 0.7, 4, 6),
                "vision": (6, 5, 0.6, 2, 2),
            },
        ),
        (
            "tight",
            12,
            {
                "image": (10, 12, 1, 15, 1),
                "speech": (3, 3, 0.5, 1, 6),
                "transcription": (2, 2, 0.5, 2, 4),
                "language": (7, 6, 0.7, 4, 6),
            },
        ),
        ("eight", 24, {f"model-{n}": (8, 6, 0.7, 3, 1 / n) for n in range(1, 9)}),
    ],
)
def test_the_built_in_mixes(mix: str, total_gib: int, rows: dict[str, tuple[float, ...]]) -> None:
    built_in = MIXES[mix]
    assert built_in.total_mib == total_gib * GIB
    assert {
        d.service.name: (
            d.service.footprint_mib / GIB,
            d.service.load_s,
            d.service.unload_s,
            d.job_s,
            d.weight,
        )
        for d in built_in.demands
    } == rows


def test_the_same_seed_gives_the_same_trace_and_another_seed_another() -> None:
    def made(seed: int) -> object:
        return make_trace(MIXES["tight"], BURSTS, utilisation=0.5, jobs=50, seed=seed)

    assert made(1) == made(1)
    assert made(1) != made(2)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("arrivals", [POISSON, BURSTS])
@pytest.mark.parametrize("utilisation", [0.3, 0.8])
def test_computing_takes_the_asked_share_of_the_time(
    mix: str, arrivals: Arrivals, utilisation: float
) -> None:
    trace = make_trace(MIXES[mix], arrivals, utilisation=utilisation, jobs=40_000, seed=1)
    computing_s = sum(arrival.service_s for arrival in trace.arrivals)
    # Standard error: about 1 % for single jobs, twice that for bursts.
    assert computing_s / trace.arrivals[-1].at_s == pytest.approx(utilisation, rel=0.06)


def test_services_come_by_weight_and_their_jobs_take_the_mean_time_given() -> None:
    mix = MIXES["homelab"]
    trace = make_trace(mix, POISSON, utilisation=0.5, jobs=40_000, seed=3)
    counts = Counter(arrival.consumer for arrival in trace.arrivals)
    for demand in mix.demands:
        name = demand.service.name
        times = [a.service_s for a in trace.arrivals if a.consumer == name]
        assert counts[name] / 40_000 == pytest.approx(demand.weight / 19, rel=0.06)
        assert sum(times) / len(times) == pytest.approx(demand.job_s, rel=0.04)


def test_bursts_have_four_jobs_in_the_mean_and_are_for_one_service() -> None:
    trace = make_trace(MIXES["homelab"], BURSTS, utilisation=0.5, jobs=40_000, seed=1)
    bursts = [list(burst) for _, burst in groupby(trace.arrivals, key=lambda a: a.at_s)]
    assert 40_000 / len(bursts) == pytest.approx(4.0, rel=0.04)
    assert all(len({arrival.consumer for arrival in burst}) == 1 for burst in bursts)
    # Geometric: one in four has a single job.
    assert sum(len(b) == 1 for b in bursts) / len(bursts) == pytest.approx(0.25, abs=0.02)


def test_a_backlog_is_all_there_at_the_start() -> None:
    trace = make_trace(MIXES["homelab"], BACKLOG, utilisation=0.5, jobs=30, seed=1)
    assert trace.is_backlog
    assert len(trace.arrivals) == 30
    assert not make_trace(MIXES["eight"], POISSON, utilisation=0.5, jobs=2, seed=1).is_backlog
