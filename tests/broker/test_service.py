from __future__ import annotations

import asyncio

import pytest

from mgpu.core.effects import Finish, Grant
from mgpu.core.model import Outcome
from mgpu.errors import (
    ConsumerFailed,
    Draining,
    JobTimeout,
    LoadFailed,
    Paused,
    RequestError,
    UnloadFailed,
    WaitExpired,
)
from tests.broker.conftest import Bench, bench


def ends(desk: Bench) -> list[Outcome]:
    return [fact.outcome for fact in desk.facts if isinstance(fact, Finish)]


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
        running = asyncio.Event()

        async def work() -> None:
            async with desk.broker.lease("1", "a"):
                running.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await running.wait()
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
        running = asyncio.Event()

        async def work() -> None:
            async with desk.broker.lease("1", "a"):
                running.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await running.wait()
        desk.broker.cancel("1")
        with pytest.raises(Exception, match="cancelled"):
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

    async def test_is_refused_when_a_controller_breaks(
        self, desk: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        desk.a.load_error = RuntimeError("a bug")
        with pytest.raises(LoadFailed, match="its controller broke"):
            async with desk.broker.lease("1", "a"):
                pytest.fail("granted")


class TestLoadAndUnload:
    async def test_load_returns_when_the_consumer_is_resident(self, desk: Bench) -> None:
        await desk.broker.load("a")
        assert desk.a.resident
        await desk.broker.load("a")
        assert desk.a.calls == ["load"]

    async def test_unload_returns_when_the_consumer_is_absent(self, desk: Bench) -> None:
        await desk.broker.load("a")
        await desk.broker.unload("a")
        assert not desk.a.resident
        await desk.broker.unload("a")
        assert desk.a.calls == ["load", "unload"]

    async def test_unload_waits_for_running_jobs(self, desk: Bench) -> None:
        async with desk.broker.lease("1", "a"):
            unloading = asyncio.create_task(desk.broker.unload("a"))
            await desk.until("s.consumers['a'].state == 'draining'")
            assert desk.a.resident
        await unloading
        assert not desk.a.resident

    async def test_unload_escalates(self, desk: Bench) -> None:
        await desk.broker.load("a")
        desk.a.unload_error = UnloadFailed("it hangs")
        await desk.broker.unload("a")
        assert desk.a.calls == ["load", "unload", "escalate"]

    async def test_unload_of_what_cannot_be_unloaded_is_refused(self, desk: Bench) -> None:
        desk.broker._scheduler.state.consumers["a"].policy = desk.broker._scheduler.state.consumers[
            "a"
        ].policy.__class__(name="a", footprint_mib=1, can_unload=False)
        with pytest.raises(RequestError, match="no way to be unloaded"):
            await desk.broker.unload("a")

    async def test_a_load_nobody_waits_for_any_more_leaves_the_queue(self, desk: Bench) -> None:
        desk.a.may_load.clear()
        loading = asyncio.create_task(desk.broker.load("a"))
        await desk.a.loading.wait()
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        assert desk.broker.snapshot().queued == 0


class TestDrain:
    async def test_refuses_the_waiting_and_lets_the_running_end(self, desk: Bench) -> None:
        async with desk.broker.lease("1", "a"):
            waiting = asyncio.create_task(desk.broker.lease("2", "a").__aenter__())
            await desk.until("s.consumers['a'].queued == 1")
            draining = asyncio.create_task(desk.broker.drain(5))
            with pytest.raises(Draining):
                await waiting
            assert not draining.done()
            assert desk.broker.ready_problems == ("the broker is shutting down",)
        assert await draining

    async def test_gives_up_when_time_is_up(self, desk: Bench) -> None:
        async with desk.broker.lease("1", "a"):
            assert not await desk.broker.drain(0.01)


class TestReadiness:
    async def test_is_ready_when_the_gpu_was_read_and_every_consumer_is_known(
        self, desk: Bench
    ) -> None:
        await desk.until("not self.broker.ready_problems")

    async def test_is_not_ready_while_the_gpu_does_not_answer(self, desk: Bench) -> None:
        await desk.until("not self.broker.ready_problems")
        desk.gpu.broken = "fell off the bus"
        await desk.until("self.broker.ready_problems == ('GPU 0: fell off the bus',)")
        desk.gpu.broken = None
        await desk.until("not self.broker.ready_problems")


class TestActions:
    async def test_a_restart_breaks_a_lease_off_and_loads_again(self, desk: Bench) -> None:
        async def hang() -> None:
            async with desk.broker.lease("1", "a"):
                await asyncio.Event().wait()

        hanging = asyncio.create_task(hang())
        await desk.until("s.consumers['a'].running == 1")
        await desk.broker.restart("a")
        with pytest.raises(ConsumerFailed, match="restarted by hand"):
            await hanging
        assert desk.a.calls == ["load", "escalate", "load"]
        assert ends(desk) == [Outcome.FAILED, Outcome.DONE]

    async def test_a_restart_while_paused_does_not_load(self, desk: Bench) -> None:
        await desk.broker.load("a")
        await desk.broker.pause()
        await desk.broker.restart("a")
        assert desk.a.calls == ["load", "unload"]

    async def test_a_pinned_consumer_is_loaded_and_shown(self, desk: Bench) -> None:
        desk.broker.pin("a", pinned=True)
        await desk.until("s.consumers['a'].state == 'resident'")
        assert desk.broker.snapshot().consumers["a"].pinned
        desk.broker.pin("a", pinned=False)
        assert not desk.broker.snapshot().consumers["a"].pinned

    async def test_a_pause_returns_when_everybody_has_left(self, desk: Bench) -> None:
        await desk.broker.load("a")
        await desk.broker.pause()
        assert not desk.a.resident
        assert "the broker is paused" in desk.broker.ready_problems
        with pytest.raises(Paused):
            await desk.broker.load("a")
        desk.broker.resume()
        await desk.broker.load("a")
        assert not desk.broker.ready_problems

    async def test_a_lease_says_how_long_its_consumer_may_be_idle(self, desk: Bench) -> None:
        async with desk.broker.lease("1", "a", idle_unload_s=0.0):
            pass
        await desk.until("s.consumers['a'].state == 'absent'")
