from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from mgpu.core.model import ByHand, Outcome
from mgpu.errors import ConsumerFailed, Draining, Paused, RequestError, UnloadFailed
from tests.broker.conftest import Bench, ends


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
        await desk.broker.pin("a", pinned=True)
        await desk.until("s.consumers['a'].state == 'resident'")
        assert desk.broker.snapshot().consumers["a"].pinned
        await desk.broker.pin("a", pinned=False)
        assert not desk.broker.snapshot().consumers["a"].pinned

    async def test_a_pause_returns_when_everybody_has_left(self, desk: Bench) -> None:
        await desk.broker.load("a")
        await desk.broker.pause()
        assert not desk.a.resident
        assert "the broker is paused" in desk.broker.ready_problems
        with pytest.raises(Paused):
            await desk.broker.load("a")
        await desk.broker.resume()
        await desk.broker.load("a")
        assert not desk.broker.ready_problems

    async def test_a_lease_says_how_long_its_consumer_may_be_idle(self, desk: Bench) -> None:
        async with desk.broker.lease("1", "a", idle_unload_s=0.0):
            pass
        await desk.until("s.consumers['a'].state == 'absent'")


class TestWhatAPersonAsksFor:
    """It holds at once, and is answered when it is kept."""

    async def test_of_a_pause(self, desk: Bench) -> None:
        desk.keeper.may_write.clear()
        await _answered_when_kept(desk, desk.broker.pause(), "s.paused")
        assert [by_hand.paused_at is None for by_hand in desk.keeper.asked] == [False]

    async def test_of_going_on(self, desk: Bench) -> None:
        await desk.broker.pause()
        desk.keeper.may_write.clear()
        await _answered_when_kept(desk, desk.broker.resume(), "not s.paused")
        assert [by_hand.paused_at is None for by_hand in desk.keeper.asked] == [False, True]

    async def test_of_a_pin(self, desk: Bench) -> None:
        desk.keeper.may_write.clear()
        pin = desk.broker.pin("a", pinned=True)
        await _answered_when_kept(desk, pin, "s.consumers['a'].pinned")
        assert desk.keeper.asked == [ByHand(pins={"a": True})]

    async def test_is_forgotten_with_its_consumer_and_the_log_says_so(self, desk: Bench) -> None:
        await desk.broker.pin("a", pinned=True)
        policy = desk.broker._scheduler.state.policy
        others = {"b": policy.consumers["b"]}
        with capture_logs() as written:
            desk.broker.reconfigure(replace(policy, consumers=others), {})
        forgotten = "a pin by hand is forgotten: it is not configured any more"
        assert [line["consumer"] for line in written if line["event"] == forgotten] == ["a"]
        assert desk.keeper.asked[-1] == ByHand()


async def _answered_when_kept(
    desk: Bench, asking: Coroutine[Any, Any, None], condition: str
) -> None:
    asked = asyncio.create_task(asking)
    await desk.until(condition)
    await desk.keeper.awaited.wait()
    assert not asked.done()
    desk.keeper.may_write.set()
    await asked
