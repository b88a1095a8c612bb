"""The memory of simulated GPUs: who really holds how much of it, and what a reading shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from mgpu.core.model import GpuProcess, GpuReading
from mgpu.simulation.agenda import Agenda
from tests.faults.scenario import TOTAL_MIB, Scenario
from tests.faults.service import Service


class Memory:
    """What all services and processes of nobody hold. ``changed`` is called as memory moves."""

    def __init__(
        self,
        scenario: Scenario,
        services: Mapping[str, Service],
        agenda: Agenda,
        changed: Callable[[], None],
    ) -> None:
        self._services = services
        self._agenda = agenda
        self._changed = changed
        self._is_attributed = scenario.attributed
        self._seen: set[str] = set()
        self.total_mib = dict.fromkeys(range(scenario.gpus), TOTAL_MIB)
        self.foreign_mib = dict.fromkeys(range(scenario.gpus), scenario.foreign_mib)
        self.moved_at: dict[int, list[tuple[float, str]]] = {g: [] for g in self.total_mib}
        """When memory moved on each GPU, and whose."""

    def free_mib(self, gpu: int) -> int:
        """What is really free on a GPU."""
        held_mib = sum(s.held_mib.get(gpu, 0) for s in self._services.values())
        return self.total_mib[gpu] - self.foreign_mib[gpu] - held_mib

    def reading(self, gpu: int) -> GpuReading:
        """A GPU as it is measured when all is well."""
        plain = GpuReading(index=gpu, total_mib=self.total_mib[gpu], free_mib=self.free_mib(gpu))
        return self._attributed(plain) if self._is_attributed else plain

    def take(self, service: Service, gpus: tuple[int, ...], key: str = "") -> bool:
        """Fill a service's memory, all of it or nothing; ``key``: what it was told to load with."""
        self._set_held(service, {})
        share_mib = -(-service.true_mib // len(gpus))
        if any(gpu not in self.total_mib or share_mib > self.free_mib(gpu) for gpu in gpus):
            return False
        service.loaded = True
        service.loaded_key = key
        self._set_held(service, dict.fromkeys(gpus, share_mib))
        return True

    def drop(self, service: Service, *, kept: float = 0.0) -> None:
        """Empty a service's memory, but for a fraction."""
        service.loaded = False
        rest = {gpu: round(mib * kept) for gpu, mib in service.held_mib.items() if kept}
        # Where it is told whose memory that is, it looks like one that is loaded.
        service.doubtful |= self._is_attributed and bool(rest)
        self._set_held(service, rest)

    def set_foreign(self, gpu: int, mib: int) -> None:
        """Processes of nobody hold so much from now on, as far as there is room."""
        own_mib = self.free_mib(gpu) + self.foreign_mib[gpu]
        self.foreign_mib[gpu] = max(0, min(mib, own_mib))
        self._note(gpu, "")

    def grow(self, service: Service, mib: int) -> None:
        """A service takes more on each of its GPUs, as far as there is room."""
        grown = {gpu: held + min(mib, self.free_mib(gpu)) for gpu, held in service.held_mib.items()}
        self._set_held(service, grown)

    def is_hidden(self, gpu: int) -> bool:
        """Whether memory that nobody may be billed for makes up for what a guess got wrong."""
        unknown = any(s.spec.policy.learns and s.held_mib.get(gpu) for s in self._services.values())
        return bool(self.foreign_mib[gpu]) or unknown

    def _attributed(self, reading: GpuReading) -> GpuReading:
        """Who has ever held memory is known from then on, as ``mgpu.gpu.attribution`` does it."""
        self._seen |= {s.name for s in self._services.values() if any(s.held_mib.values())}
        held = {name: self._services[name].held_mib.get(reading.index, 0) for name in self._seen}
        foreign_mib = self.foreign_mib[reading.index]
        foreign = (GpuProcess(pid=1, mib=foreign_mib),) if foreign_mib else ()
        return replace(reading, held_mib=held, foreign=foreign)

    def _set_held(self, service: Service, held_mib: dict[int, int]) -> None:
        for gpu in service.held_mib.keys() | held_mib.keys():
            self._note(gpu, service.name)
        service.held_mib = held_mib

    def _note(self, gpu: int, whose: str) -> None:
        self.moved_at[gpu].append((self._agenda.now_s, whose))
        self._changed()
