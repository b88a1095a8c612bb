from __future__ import annotations

import asyncio
import errno
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from mgpu.api import spool
from mgpu.api.spool import DiskBudget, Spool
from mgpu.errors import StorageFull

KIB = 1024


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "_PATIENCE_S", 0.0)


@pytest.fixture
def held() -> Iterator[Spool]:
    held = Spool(4 * KIB, DiskBudget(1 << 20))
    yield held
    held.close()


async def drained(held: Spool) -> bytes:
    parts = []
    while chunk := await held.get():
        parts.append(chunk)
    return b"".join(parts)


async def test_what_goes_in_comes_out_in_order_through_memory_and_disk(held: Spool) -> None:
    sent = [bytes([number]) * KIB for number in range(64)]
    for chunk in sent[:40]:
        await held.put(chunk)
    assert held.on_disk_bytes == 36 * KIB
    received = await held.get()
    for chunk in sent[40:]:
        await held.put(chunk)
    held.end()

    received += await drained(held)

    assert received == b"".join(sent)
    assert held.on_disk_bytes == 0


async def test_nothing_goes_to_disk_while_the_other_side_takes_what_comes(
    held: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "_PATIENCE_S", 5.0)
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    sent = [bytes([number % 256]) * KIB for number in range(300)]

    async def put_all() -> None:
        for chunk in sent:
            await held.put(chunk)
        held.end()

    putting = asyncio.create_task(put_all())
    received = await drained(held)
    await putting

    assert received == b"".join(sent)


async def test_memory_is_used_again_once_the_disk_is_empty(held: Spool) -> None:
    for _ in range(8):
        await held.put(b"x" * KIB)
    while held.on_disk_bytes:
        await held.get()

    await held.put(b"y" * KIB)

    assert held.on_disk_bytes == 0


async def test_without_room_on_disk_the_sender_waits() -> None:
    held = Spool(KIB, DiskBudget(2 * KIB))
    for _ in range(3):
        await held.put(b"x" * KIB)
    waiting = asyncio.create_task(held.put(b"y" * KIB))
    await asyncio.wait([waiting], timeout=0.05)
    assert not waiting.done()

    received = b""
    while len(received) < 3 * KIB:
        received += await held.get()
    await waiting
    held.end()

    assert received + await drained(held) == b"x" * 3 * KIB + b"y" * KIB
    held.close()


async def test_a_full_disk_makes_the_sender_wait_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spool, "_write_all", full)
    budget = DiskBudget(1 << 20)
    held = Spool(KIB, budget)
    await held.put(b"x" * KIB)
    waiting = asyncio.create_task(held.put(b"y" * KIB))
    await asyncio.wait([waiting], timeout=0.05)
    assert not waiting.done()

    assert await held.get() == b"x" * KIB
    await waiting
    held.end()

    assert await drained(held) == b"y" * KIB
    assert budget.free_bytes == 1 << 20
    held.close()


async def test_the_disk_is_given_back_when_it_closes() -> None:
    budget = DiskBudget(1 << 20)
    held = Spool(KIB, budget)
    for _ in range(5):
        await held.put(b"x" * KIB)
    assert budget.free_bytes < 1 << 20

    held.close()

    assert budget.free_bytes == 1 << 20


async def test_closing_while_a_thread_writes_waits_with_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    begun, go_on = asyncio.Event(), asyncio.Event()
    files: list[Any] = []
    write, make = spool._write_all, tempfile.TemporaryFile

    def slow(*arguments: Any) -> None:
        loop.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(5)
        write(*arguments)

    def made(**options: Any) -> Any:
        files.append(make(**options))
        return files[-1]

    monkeypatch.setattr(spool, "_write_all", slow)
    monkeypatch.setattr(tempfile, "TemporaryFile", made)
    held = Spool(KIB, DiskBudget(1 << 20))
    await held.put(b"x" * KIB)
    putting = asyncio.create_task(held.put(b"y" * KIB))
    await begun.wait()
    putting.cancel()
    await asyncio.wait([putting])
    held.close()
    assert not files[0].closed

    running = set(held._in_thread)
    go_on.set()
    await asyncio.wait(running)
    await asyncio.sleep(0)  # its callbacks

    assert files[0].closed


async def test_what_nobody_takes_yet_is_kept_or_refused_but_never_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spool, "_PATIENCE_S", 5.0)
    held = Spool(4 * KIB, DiskBudget(2 * KIB))
    sent = [bytes([number]) * KIB for number in range(7)]

    async with asyncio.timeout(2):
        for chunk in sent[:6]:
            await held.put(chunk, taken=False)
        with pytest.raises(StorageFull):
            await held.put(sent[6], taken=False)
    held.end()

    assert await drained(held) == b"".join(sent[:6])
    held.close()
