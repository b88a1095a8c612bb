import asyncio

import pytest

from mgpu.demo.catalogue import CATALOGUE, Kind, Profile
from mgpu.demo.weights import NotLoadedError, Weights

PROFILE = CATALOGUE[Kind.TTS].scaled(0.05)
FULL, RESIDUAL = PROFILE.footprint_mib, PROFILE.residual_mib


class Ledger:
    """Remembers every amount held, and when."""

    def __init__(self) -> None:
        self.entries: list[tuple[float, int]] = []
        self.changed = asyncio.Event()

    def hold(self, mib: int) -> None:
        self.entries.append((asyncio.get_running_loop().time(), mib))
        self.changed.set()

    @property
    def amounts(self) -> list[int]:
        return [mib for _, mib in self.entries]

    async def reaches(self, mib: int) -> float:
        async with asyncio.timeout(10):
            while not self.entries or self.entries[-1][1] != mib:
                self.changed.clear()
                await self.changed.wait()
        return self.entries[-1][0]


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def make(ledger: Ledger, profile: Profile = PROFILE, *, lazy: bool = False) -> Weights:
    return Weights(profile, ledger, lazy=lazy)


async def test_a_load_takes_its_memory_in_growing_steps(ledger: Ledger) -> None:
    await make(ledger).load()
    assert len(ledger.amounts) > 3
    assert ledger.amounts == sorted(set(ledger.amounts))
    assert ledger.amounts[-1] == FULL


async def test_two_who_load_at_once_share_one_load(ledger: Ledger) -> None:
    weights = make(ledger)
    await asyncio.gather(weights.load(), weights.load())
    assert ledger.amounts.count(FULL) == 1


async def test_memory_comes_back_only_a_while_after_the_unloads_answer(ledger: Ledger) -> None:
    weights = make(ledger)
    await weights.load()
    await weights.unload()
    answered = asyncio.get_running_loop().time()
    assert not weights.loaded
    assert ledger.amounts[-1] == FULL
    freed = await ledger.reaches(RESIDUAL)
    assert freed - answered > PROFILE.lag_s * 0.5


async def test_a_load_right_after_an_unload_is_not_undone_by_it(ledger: Ledger) -> None:
    weights = make(ledger)
    await weights.load()
    await weights.unload()
    await weights.load()
    freed = ledger.amounts.index(RESIDUAL)
    assert ledger.amounts[freed:] == sorted(ledger.amounts[freed:])
    assert ledger.amounts.count(RESIDUAL) == 1
    assert weights.loaded


async def test_a_job_needs_the_weights(ledger: Ledger) -> None:
    with pytest.raises(NotLoadedError):
        await make(ledger).run(lambda: None)
    assert ledger.amounts == []


async def test_a_lazy_ones_first_job_loads(ledger: Ledger) -> None:
    weights = make(ledger, lazy=True)
    assert await weights.run(lambda: weights.loaded) is True
    assert ledger.amounts[-1] == FULL


async def test_unloading_when_idle_waits_for_the_running_job_and_not_for_the_next(
    ledger: Ledger,
) -> None:
    weights = make(ledger)
    await weights.load()
    async with weights.job():
        weights.unload_when_idle()
        assert weights.loaded
        waiting = asyncio.create_task(weights.run(lambda: None))
    with pytest.raises(NotLoadedError):
        await waiting
    await ledger.reaches(RESIDUAL)


async def test_a_load_that_is_broken_off_gives_its_memory_back(ledger: Ledger) -> None:
    weights = make(ledger)
    loading = asyncio.create_task(weights.load())
    await ledger.reaches(FULL // 8)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert ledger.amounts[-1] == RESIDUAL
    assert not weights.loaded


async def test_closing_gives_everything_back_at_once(ledger: Ledger) -> None:
    weights = make(ledger)
    await weights.load()
    await weights.unload()
    weights.close()
    assert ledger.amounts[-1] == 0
