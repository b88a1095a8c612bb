"""What no policy can beat, or what it would be like without loading.

For a backlog (all jobs there at the start, on one GPU) the least reload seconds can be computed: a
shortest path over pairs of (consumers whose jobs are still to be done, consumers that are
resident). Jobs of residents cost nothing, so they are done at once; a step makes one consumer
resident and costs its load and the unloads of its victims. Dijkstra, "A note on two problems in
connexion with graphs", Numerische Mathematik 1 (1959).
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Mapping

from mgpu.simulation.outcome import JobRun, Result
from mgpu.simulation.workload import Service, Trace

MOST_CONSUMERS = 8


def least_reload_s(trace: Trace) -> float | None:
    """The least seconds of loading and unloading that serve a backlog, each taken for itself.

    None where it cannot be computed: jobs arrive over time, several GPUs, more than
    ``MOST_CONSUMERS`` services, one that can never fit, or rules about who may leave and what stays
    then.
    """
    services = list(trace.services.values())
    room_mib = trace.total_mib[0] - trace.cushion_mib
    wanted = frozenset(arrival.consumer for arrival in trace.arrivals)
    feasible = all(trace.services[name].footprint_mib <= room_mib for name in wanted)
    one_gpu = len(trace.total_mib) == 1
    free = all(service.rules.leaves_freely for service in services)
    solvable = feasible and free and len(services) <= MOST_CONSUMERS
    if not (trace.is_backlog and one_gpu and solvable):
        return None
    return _search(trace.services, wanted, frozenset(trace.resident), room_mib)


def never_loads(trace: Trace) -> Result:
    """Jobs in order of arrival, one at a time, on a GPU that never has to load anything.

    Of several GPUs the one that is free first takes the next job.
    """
    free_at_s = [0.0] * len(trace.total_mib)
    result = Result()
    for number, arrival in enumerate(trace.arrivals):
        start_s = max(arrival.at_s, heapq.heappop(free_at_s))
        end_s = start_s + arrival.service_s
        heapq.heappush(free_at_s, end_s)
        result.runs.append(JobRun(number, arrival.consumer, arrival.at_s, start_s, end_s))
    result.ended_s = max((run.ended_s for run in result.runs), default=0.0)
    return result


def _search(
    services: Mapping[str, Service], wanted: frozenset[str], resident: frozenset[str], room_mib: int
) -> float:
    start = (wanted - resident, resident)
    cost_s = {start: 0.0}
    # Sets have no order: a number keeps nodes of equal cost apart.
    numbers = itertools.count()
    queue = [(0.0, next(numbers), start)]
    while True:
        so_far_s, _, node = heapq.heappop(queue)
        left, present = node
        if not left:
            return so_far_s
        if so_far_s > cost_s[node]:
            continue
        for target in left:
            for victims in _victims(services, target, present, room_mib):
                step_s = services[target].load_s + sum(services[v].unload_s for v in victims)
                reached = (left - {target}, present - victims | {target})
                if so_far_s + step_s < cost_s.get(reached, math.inf):
                    cost_s[reached] = so_far_s + step_s
                    heapq.heappush(queue, (so_far_s + step_s, next(numbers), reached))


def _victims(
    services: Mapping[str, Service], target: str, present: frozenset[str], room_mib: int
) -> Iterator[frozenset[str]]:
    """Every set of residents that makes enough room by leaving."""
    need_mib = sum(services[name].footprint_mib for name in present | {target}) - room_mib
    for count in range(len(present) + 1):
        for victims in itertools.combinations(sorted(present), count):
            if sum(services[name].footprint_mib for name in victims) >= need_mib:
                yield frozenset(victims)
