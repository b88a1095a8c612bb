"""One consumer's waiting jobs, and which of them is next.

Higher priority first, then first come; but the oldest job goes first as soon as it has waited for
``max_overtake_s``, whatever its priority. Two orders over the same jobs are kept side by side (a
heap by priority, a queue by arrival) and a job that left is dropped when it comes to the front of
one, so that every operation is O(log n) amortised and nothing scans the queue.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator

from mgpu.core.jobs import Job


class Waiting:
    """Jobs of one consumer that hold no lease yet."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._by_rank: list[tuple[int, int, Job]] = []
        self._by_arrival: deque[Job] = deque()

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs.values())

    def add(self, job: Job) -> None:
        """Put a job at the end of its priority."""
        self._jobs[job.id] = job
        heapq.heappush(self._by_rank, (-job.priority, job.seq, job))
        self._by_arrival.append(job)

    def remove(self, job: Job) -> None:
        """Take a job out, wherever it stands."""
        del self._jobs[job.id]
        self._forget_departed()

    def first(self) -> Job:
        """The first come of the highest priority. Not to be asked of an empty queue."""
        return self._by_rank[0][2]

    def oldest_seq(self) -> int:
        """The number of the oldest one's arrival. Not to be asked of an empty queue."""
        return self._by_arrival[0].seq

    def head(self, at: float, max_overtake_s: float) -> tuple[Job, bool]:
        """The next job, and whether it has waited so long that nobody may overtake it.

        Not to be asked of an empty queue.
        """
        oldest = self._by_arrival[0]
        if oldest.arrived_at + max_overtake_s <= at:
            return oldest, True
        return self.first(), False

    def _forget_departed(self) -> None:
        while self._by_rank and self._by_rank[0][2].id not in self._jobs:
            heapq.heappop(self._by_rank)
        while self._by_arrival and self._by_arrival[0].id not in self._jobs:
            self._by_arrival.popleft()
