from __future__ import annotations

from mgpu.core.events import JobKind
from mgpu.core.jobs import Job
from mgpu.core.waiting import Waiting


def job(seq: int, priority: int = 0, arrived_at: float = 0.0) -> Job:
    return Job(f"j{seq}", "tts", JobKind.COMPUTE, priority, seq, arrived_at)


def queue(*jobs: Job) -> Waiting:
    waiting = Waiting()
    for each in jobs:
        waiting.add(each)
    return waiting


def order(waiting: Waiting, at: float = 0.0, max_overtake_s: float = 100.0) -> list[int]:
    found = []
    while waiting:
        head, _ = waiting.head(at, max_overtake_s)
        found.append(head.seq)
        waiting.remove(head)
    return found


def test_first_come_first_served() -> None:
    assert order(queue(job(1), job(2), job(3))) == [1, 2, 3]


def test_higher_priority_first_and_first_come_within_it() -> None:
    assert order(queue(job(1), job(2, 5), job(3, 5), job(4, -1))) == [2, 3, 1, 4]


def test_the_oldest_goes_first_as_soon_as_it_may_not_be_overtaken_any_more() -> None:
    waiting = queue(job(1, arrived_at=0.0), job(2, 5, arrived_at=50.0))
    assert waiting.head(99.9, 100.0) == (next(j for j in waiting if j.seq == 2), False)
    assert waiting.head(100.0, 100.0) == (next(j for j in waiting if j.seq == 1), True)


def test_who_left_is_passed_over_wherever_it_stood() -> None:
    jobs = [job(1), job(2, 5), job(3), job(4, 5)]
    waiting = queue(*jobs)
    for gone in (jobs[2], jobs[1]):
        waiting.remove(gone)
    assert len(waiting) == 2
    assert [j.seq for j in waiting] == [1, 4]
    assert order(waiting) == [4, 1]


def test_a_queue_that_is_emptied_keeps_nothing() -> None:
    jobs = [job(n, priority=n % 3) for n in range(100)]
    waiting = queue(*jobs)
    for each in reversed(jobs):
        waiting.remove(each)
    assert not waiting
    assert (waiting._by_rank, list(waiting._by_arrival)) == ({}, [])
