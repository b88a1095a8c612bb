from __future__ import annotations

import asyncio

import pytest

from mgpu.core.effects import Grant
from mgpu.core.model import Outcome
from mgpu.errors import JobCancelled, JobTimeout, LoadFailed, LoadNotBegun, WaitExpired
from tests.broker.conftest import Bench, bench, ends


async def computing(desk: Bench) -> asyncio.Task[None]:
    """Job 1 of consumer a, which has its lease and never ends by itself."""
    running = asyncio.Event()

    async def work() -> None:
        async with desk.broker.lease("1", "a"):
            running.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await running.wait()
    return task


class TestLease:
    async def test_waits_until_its_consumer_is_loaded(self, desk: Bench) -> None:
        async with desk.broker.lease("1", "a") as lease:
            assert desk.a.resident
            assert (lease.consumer, lease.gpus) == ("a", (0,))
            assert desk.a.placements[0].uuids == ("GPU-0",)
        assert ends(desk) == [Outcome.DONE]

    async def test_has_its_consumer_loaded_as_it_wants(self, desk: Bench) -> None:
        async with desk.broker.lease("1", "a", load_key='{"body": {"ctx": 2}}'):
            assert desk.a.bodies == [{"ctx": 2}]
        async with desk.broker.lease("2", "a"):
            pass
        await desk.broker.load("a", '{"body": {"ctx": 3}}')
        assert desk.a.bodies == [{"ctx": 2}, {"ctx": 3}]
        assert desk.a.calls == ["load", "unload", "load"]

    async def test_carries_a_token_that_only_grows(self, desk: Bench) -> None:
        async with desk.broker.lease("1", "a") as first:
            pass
        async with desk.broker.lease("2", "a") as second:
            pass
        assert 100 <= first.token < second.token

    async def test_evicts_who_was_there_before(self, desk: Bench) -> None:
        async with desk.broker.lease("1", "a"):
            pass
        async with desk.broker.lease("2", "b"):
            assert not desk.a.resident
        assert desk.a.calls == ["load", "unload"]

    async def test_excludes_every_other_consumer_while_it_is_held(self, desk: Bench) -> None:
        async with desk.broker.lease("1", "a"):
            other = asyncio.create_task(desk.broker.lease("2", "b").__aenter__())
            await desk.until("s.consumers['b'].queued == 1")
            assert not other.done()
            other.cancel()
            await asyncio.gather(other, return_exceptions=True)

    async def test_a_body_that_raises_is_a_failed_job(self, desk: Bench) -> None:
        with pytest.raises(RuntimeError, match="broke"):
            async with desk.broker.lease("1", "a"):
                raise RuntimeError("broke")
        assert ends(desk) == [Outcome.FAILED]
        assert desk.broker.snapshot().consumers["a"].running == 0

    async def test_a_body_that_says_so_is_a_failed_job(self, desk: Bench) -> None:
        async with desk.broker.lease("1", "a") as lease:
            lease.failed = True
        assert ends(desk) == [Outcome.FAILED]

    async def test_a_failed_job_makes_the_consumer_be_asked_at_once(self, desk: Bench) -> None:
        async with desk.broker.lease("1", "a") as lease:
            await desk.a.probed.wait()
            desk.a.probed.clear()
            lease.failed = True
        async with asyncio.timeout(1):
            await desk.a.probed.wait()

    async def test_cancelled_while_waiting_leaves_the_queue(self, desk: Bench) -> None:
        desk.a.may_load.clear()
        waiting = asyncio.create_task(desk.broker.lease("1", "a").__aenter__())
        await desk.a.loading.wait()

        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

        assert desk.broker.snapshot().queued == 0
        assert ends(desk) == [Outcome.CANCELLED]

    async def test_cancelled_in_the_very_turn_of_its_grant_gives_it_back(self, desk: Bench) -> None:
        async with desk.broker.lease("1", "a"):
            waiting = asyncio.create_task(desk.broker.lease("2", "a").__aenter__())
            await desk.until("s.consumers['a'].queued == 1")
        # The grant was made when the block above ended; the task has not run since.
        assert [fact.job for fact in desk.facts if isinstance(fact, Grant)] == ["1", "2"]
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

        assert desk.broker.snapshot().consumers["a"].running == 0
        assert ends(desk) == [Outcome.DONE, Outcome.CANCELLED]

    async def test_cancelled_while_it_runs_is_a_cancelled_job(self, desk: Bench) -> None:
        task = await computing(desk)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ends(desk) == [Outcome.CANCELLED]

    async def test_stops_a_body_that_runs_too_long(self) -> None:
        async with bench(job_timeout_s=0.05) as desk:
            with pytest.raises(JobTimeout, match=r"longer than 0\.05 s"):
                async with desk.broker.lease("1", "a"):
                    await asyncio.Event().wait()
            assert ends(desk) == [Outcome.FAILED]
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0

    async def test_stops_a_body_whose_job_somebody_cancelled(self, desk: Bench) -> None:
        task = await computing(desk)
        desk.broker.cancel("1")
        with pytest.raises(JobCancelled):
            await task
        assert ends(desk) == [Outcome.CANCELLED]

    async def test_waits_no_longer_than_it_wants_to(self, desk: Bench) -> None:
        desk.a.may_load.clear()
        with pytest.raises(WaitExpired):
            async with desk.broker.lease("1", "a", max_wait_s=0.05):
                pytest.fail("granted")
        assert ends(desk) == [Outcome.EXPIRED]

    async def test_is_refused_when_its_consumer_cannot_be_loaded(self, desk: Bench) -> None:
        desk.a.load_error = LoadFailed("no such weights")
        with pytest.raises(LoadFailed, match="no such weights"):
            async with desk.broker.lease("1", "a"):
                pytest.fail("granted")
        assert desk.a.calls.count("load") == 2

    @pytest.mark.parametrize(("error", "unloads"), [(LoadFailed, 1), (LoadNotBegun, 0)])
    async def test_costs_nobody_their_place_when_the_load_is_not_even_begun(
        self, desk: Bench, error: type[LoadFailed], unloads: int
    ) -> None:
        desk.gpu.total_mib = 16_000
        async with desk.broker.lease("1", "b"):
            pass
        desk.a.load_error = error("nothing listens there")
        with pytest.raises(LoadFailed, match="nothing listens there"):
            async with desk.broker.lease("2", "a"):
                pytest.fail("granted")
        assert desk.b.calls.count("unload") == unloads

    async def test_is_refused_when_a_controller_breaks(
        self, desk: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        desk.a.load_error = RuntimeError("a bug")
        with pytest.raises(LoadFailed, match="its controller broke"):
            async with desk.broker.lease("1", "a"):
                pytest.fail("granted")
