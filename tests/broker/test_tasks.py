from __future__ import annotations

import asyncio

from structlog.testing import capture_logs

from mgpu.broker.tasks import Tasks


async def test_an_error_that_escapes_a_task_is_logged_by_its_name() -> None:
    async def breaks() -> None:
        raise RuntimeError("a bug")

    tasks = Tasks()
    with capture_logs() as logs:
        task = tasks.spawn("load a", breaks())
        await asyncio.wait([task])
        await tasks.close()
    assert [(entry["event"], entry["task"]) for entry in logs] == [("task broke", "load a")]


async def test_closing_cancels_what_still_runs_and_waits_for_it() -> None:
    ended: list[str] = []

    async def runs() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("yes")

    tasks = Tasks()
    task = tasks.spawn("run", runs())
    await asyncio.sleep(0)
    await tasks.close()
    assert task.cancelled()
    assert ended == ["yes"]
