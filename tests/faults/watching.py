"""How the broker comes to know: it reads the GPUs and asks the consumers, as its shell does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from mgpu.core.events import ConsumerProbed, Event, GpusLost, GpusRead
from mgpu.core.model import GpuReading
from tests.faults.kinds import Fault
from tests.faults.service import Service

if TYPE_CHECKING:
    from tests.faults.world import World

FAST_READ_S = 0.25
"""While memory moves; besides, every change is read at once then."""
IDLE_READ_S = 1.0
CALM_READ_S = 3.0
"""While nobody waits."""
PROBE_S = 5.0


class Watch:
    """The readings and probes of a world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.fast = False
        """Memory is expected to move."""
        self._next_read_at = math.inf
        self._frozen: dict[int, GpuReading] = {}
        self._probes = 0

    def start(self) -> None:
        """Ask one consumer after the other, again and again."""
        for index, name in enumerate(self._world.machine.services):
            self._world.agenda.after(0.05 + 0.7 * index, partial(self._probe_on, name))

    def start_again(self) -> None:
        """Begin anew for another broker."""
        self.fast = False
        self.read_in(0.002)
        for name in self._world.machine.services:
            self._world.agenda.after(0.05, partial(self.probe, name))

    # The GPUs

    def memory_moves(self) -> None:
        """Read soon, where a change is expected."""
        if self.fast:
            self.read_in(0.01)

    def sample(self, *, fast: bool) -> None:
        """Read at once, and often or not from then on."""
        self.fast = fast
        self.read_in(0.005)

    def read_in(self, delay_s: float) -> None:
        """Read the GPUs after this time at the latest."""
        at = self._world.now + delay_s
        if at < self._next_read_at:
            self._next_read_at = at
            self._world.agenda.at(at, lambda: self._read(at))

    def freeze(self, gpu: int) -> None:
        """Keep what is to be shown of a GPU while ``NVML_STALE`` lasts."""
        self._frozen[gpu] = self._world.machine.memory.reading(gpu)

    def _read(self, at: float) -> None:
        if at != self._next_read_at:
            return  # another reading took its place
        self._next_read_at = math.inf
        modes, world = self._world.modes, self._world
        if modes.last(Fault.NVML_HANGS):
            self.read_in(modes.until(Fault.NVML_HANGS) - world.now)
            return
        world.post(self._readings)
        pause_s = FAST_READ_S if self.fast else IDLE_READ_S
        self.read_in(pause_s if self.fast or world.state.waiting else CALM_READ_S)

    def _readings(self, at: float) -> Event:
        if self._world.modes.last(Fault.NVML_LOST):
            return GpusLost(at, "timed out")
        return GpusRead(at, tuple(self._seen()))

    def _seen(self) -> Iterator[GpuReading]:
        machine, modes = self._world.machine, self._world.modes
        for gpu in machine.memory.total_mib:
            if not modes:
                yield machine.memory.reading(gpu)
            elif modes.last(Fault.NVML_ONE_GPU_LOST, gpu):
                yield GpuReading(index=gpu, error="unknown error")
            elif modes.last(Fault.NVML_STALE, gpu):
                yield self._frozen[gpu]
            elif not modes.last(Fault.GPU_GONE, gpu):
                yield machine.memory.reading(gpu)

    # The consumers

    def _probe_on(self, name: str) -> None:
        self.probe(name)
        self._world.agenda.after(PROBE_S, lambda: self._probe_on(name))

    def probe(self, name: str) -> None:
        """Ask a consumer how it is; the answer is of now and comes later."""
        world = self._world
        if world.modes.last(Fault.PROBES_STOP, name):
            return
        attempt, epoch = world.state.consumers[name].attempt, world.machine.epoch
        report = self._report(world.machine.services[name])
        late_s = 2.5 if world.modes.last(Fault.PROBE_LATE, name) else 0.03

        def answer() -> None:
            if epoch == world.machine.epoch:
                world.post(lambda at: ConsumerProbed(at, name, attempt, *report))

        world.agenda.after(late_s, answer)

    def _report(self, service: Service) -> tuple[bool, bool, bool | None]:
        """Whether it is reachable, healthy and resident, by its own word."""
        modes, name = self._world.modes, service.name
        resident = service.loaded if service.spec.tells else None
        self._probes += 1
        if not service.alive:
            return False, False, None
        if not modes:
            return True, True, resident
        if modes.last(Fault.PROBE_FLAPS, name) and self._probes % 2:
            service.doubtful = True
            return False, False, None
        if modes.last(Fault.PROBE_SAYS_RESIDENT, name):
            resident = True
        elif modes.last(Fault.PROBE_SAYS_ABSENT, name):
            resident = False
        if resident is not None and resident is not service.loaded:
            service.doubtful = True
        return True, not modes.last(Fault.PROBE_UNHEALTHY, name), resident
