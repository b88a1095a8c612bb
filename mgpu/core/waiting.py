"""One consumer's waiting jobs, and which of them is next.

Higher priority first, then first come; but the oldest job goes first as soon as it has waited for
``max_overtake_s``, whatever its priority. Two orders over the same jobs are kept side by side (by
priority, a heap for each key that jobs want the consumer loaded with; by arrival, a queue) and a
job that left is dropped when it comes to the front of one, so that every operation is O(log n)
amortised and nothing scans the queue, only the few different keys.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from functools import partial

from mgpu.core.jobs import Job


class Waiting:
    """Jobs of one consumer that hold no lease yet."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._by_rank: dict[str | None, list[tuple[int, int, Job]]] = {}
        self._by_arrival: deque[Job] = deque()

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs.values())

    def add(self, job: Job) -> None:
        """Put a job at the end of its priority."""
        self._jobs[job.id] = job
        heap = self._by_rank.setdefault(job.load_key, [])
        heapq.heappush(heap, (-job.priority, job.seq, job))
        self._by_arrival.append(job)

    def remove(self, job: Job) -> None:
        """Take a job out, wherever it stands."""
        del self._jobs[job.id]
        self._forget_departed(job.load_key)

    def first(self, held_key: str | None = None) -> Job:
        """The first come of the highest priority, of those rather that can do with ``held_key``.

        Not to be asked of an empty queue.
        """
        if len(self._by_rank) == 1:
            (heap,) = self._by_rank.values()
            return heap[0][2]
        fronts = [heap[0][2] for heap in self._by_rank.values()]
        return min(fronts, key=partial(_rank, held_key))

    def oldest_seq(self) -> int:
        """The number of the oldest one's arrival. Not to be asked of an empty queue."""
        return self._by_arrival[0].seq

    def head(
        self, at: float, max_overtake_s: float, held_key: str | None = None
    ) -> tuple[Job, bool]:
        """The next job, and whether it has waited so long that nobody may overtake it.

        Within a priority those go first that can do with ``held_key``; None: all are alike. Not to
        be asked of an empty queue.
        """
        oldest = self._by_arrival[0]
        if oldest.arrived_at + max_overtake_s <= at:
            return oldest, True
        return self.first(held_key), False

    def _forget_departed(self, load_key: str | None) -> None:
        heap = self._by_rank[load_key]
        while heap and heap[0][2].id not in self._jobs:
            heapq.heappop(heap)
        if not heap:
            del self._by_rank[load_key]
        while self._by_arrival and self._by_arrival[0].id not in self._jobs:
            self._by_arrival.popleft()


def _rank(held_key: str | None, job: Job) -> tuple[int, bool, int]:
    other = held_key is not None and job.load_key not in {None, held_key}
    return -job.priority, other, job.seq
