import asyncio
import statistics
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from mgpu.core.model import GpuReading
from mgpu.errors import GpuUnhealthy
from mgpu.gpu.thread import ThreadedProbe
from tests.support.nvml import NvmlStandin
from tests.support.processes import prober

LONG_S = 10.0


class NumberedReader:
    """Answers with the number of the call as free memory; hangs while ``go`` is not set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.begun = threading.Event()
        self.closed = threading.Event()
        self.calls = 0
        self.threads: set[threading.Thread] = set()
        self.error: Exception | None = None

    def read(self) -> tuple[GpuReading, ...]:
        self.calls += 1
        number = self.calls
        self.threads.add(threading.current_thread())
        self.begun.set()
        assert self.go.wait(LONG_S)
        if self.error is not None:
            raise self.error
        return (GpuReading(index=0, free_mib=number),)

    def close(self) -> None:
        self.threads.add(threading.current_thread())
        self.closed.set()

    def hang(self) -> None:
        self.begun.clear()
        self.go.clear()


@pytest.fixture
def reader() -> Iterator[NumberedReader]:
    reader = NumberedReader()
    yield reader
    reader.go.set()


@pytest.fixture
async def probe(reader: NumberedReader) -> AsyncIterator[ThreadedProbe]:
    probe = ThreadedProbe(reader, deadline_s=LONG_S)
    yield probe
    reader.go.set()
    await probe.close()


@pytest.fixture
async def hasty(reader: NumberedReader) -> AsyncIterator[ThreadedProbe]:
    probe = ThreadedProbe(reader, deadline_s=0.05)
    yield probe
    reader.go.set()
    await probe.close()


async def free_mib(probe: ThreadedProbe) -> int:
    (gpu,) = await probe.read()
    return gpu.free_mib


async def test_all_calls_are_made_by_one_daemon_thread_of_its_own(
    probe: ThreadedProbe, reader: NumberedReader
) -> None:
    assert [await free_mib(probe) for _ in range(3)] == [1, 2, 3]
    await probe.close()
    (thread,) = reader.threads
    assert thread is not threading.current_thread()
    assert thread.daemon


async def test_reads_at_the_same_time_are_answered_one_by_one_each_with_a_call_of_its_own(
    probe: ThreadedProbe,
) -> None:
    assert await asyncio.gather(*(free_mib(probe) for _ in range(5))) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("error", [GpuUnhealthy("no driver"), ZeroDivisionError("a mistake")])
async def test_an_error_of_the_reader_reaches_the_caller_and_ends_nothing(
    probe: ThreadedProbe, reader: NumberedReader, error: Exception
) -> None:
    reader.error = error
    with pytest.raises(type(error), match=str(error)):
        await probe.read()
    reader.error = None
    assert await free_mib(probe) == 2


async def test_the_loop_runs_on_while_a_call_blocks(
    probe: ThreadedProbe, reader: NumberedReader
) -> None:
    reader.hang()
    reading = asyncio.create_task(probe.read())
    await asyncio.sleep(0)
    assert reader.begun.wait(LONG_S)
    assert not reading.done()
    reader.go.set()
    assert await reading


class TestHanging:
    async def test_the_caller_is_told_at_the_deadline(
        self, hasty: ThreadedProbe, reader: NumberedReader
    ) -> None:
        reader.hang()
        begun = time.monotonic()
        with pytest.raises(GpuUnhealthy, match=r"NVML has not answered for 0\.\d s"):
            await hasty.read()
        assert 0.05 <= time.monotonic() - begun < 1.0

    async def test_further_reads_fail_too_and_neither_threads_nor_requests_pile_up(
        self, hasty: ThreadedProbe, reader: NumberedReader
    ) -> None:
        reader.hang()
        before = set(threading.enumerate())
        results = await asyncio.gather(*(hasty.read() for _ in range(20)), return_exceptions=True)
        assert {type(result) for result in results} == {GpuUnhealthy}
        assert set(threading.enumerate()) - before == reader.threads
        reader.go.set()
        assert await free_mib(hasty) == 2
        assert len(reader.threads) == 1

    async def test_the_silence_is_told_from_its_beginning(self, reader: NumberedReader) -> None:
        probe = ThreadedProbe(reader, deadline_s=0.15)
        reader.hang()
        for least_s in (0.1, 0.2, 0.4):
            with pytest.raises(GpuUnhealthy) as raised:
                await probe.read()
            assert float(raised.value.detail.split()[-2]) >= least_s
        reader.go.set()
        await probe.close()

    async def test_a_late_answer_is_dropped_and_the_next_read_asks_afresh(
        self, hasty: ThreadedProbe, reader: NumberedReader, caplog: pytest.LogCaptureFixture
    ) -> None:
        reader.hang()
        with pytest.raises(GpuUnhealthy):
            await hasty.read()
        reader.go.set()
        assert await free_mib(hasty) == 2
        assert not caplog.records

    async def test_a_late_error_is_dropped_too(
        self, hasty: ThreadedProbe, reader: NumberedReader, caplog: pytest.LogCaptureFixture
    ) -> None:
        reader.hang()
        reader.error = GpuUnhealthy("late")
        with pytest.raises(GpuUnhealthy, match="not answered"):
            await hasty.read()
        reader.go.set()
        with pytest.raises(GpuUnhealthy, match="late"):
            await hasty.read()
        assert reader.calls == 2
        assert not caplog.records

    async def test_a_caller_that_is_cancelled_leaves_the_probe_usable(
        self, probe: ThreadedProbe, reader: NumberedReader
    ) -> None:
        reader.hang()
        reading = asyncio.create_task(probe.read())
        await asyncio.sleep(0)
        assert reader.begun.wait(LONG_S)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        reader.go.set()
        assert await free_mib(probe) == 2


class TestClosing:
    async def test_the_reader_is_closed_on_its_thread_which_ends(
        self, probe: ThreadedProbe, reader: NumberedReader
    ) -> None:
        await probe.read()
        await probe.close()
        assert reader.closed.is_set()
        (thread,) = reader.threads
        thread.join(LONG_S)
        assert not thread.is_alive()

    async def test_a_call_that_hangs_is_not_waited_for_past_its_deadline(
        self, hasty: ThreadedProbe, reader: NumberedReader
    ) -> None:
        reader.hang()
        with pytest.raises(GpuUnhealthy):
            await hasty.read()
        await asyncio.wait_for(hasty.close(), 1.0)
        assert not reader.closed.is_set()
        reader.go.set()
        assert reader.closed.wait(LONG_S)

    async def test_one_that_was_never_read_starts_no_thread(self, reader: NumberedReader) -> None:
        before = set(threading.enumerate())
        await ThreadedProbe(reader).close()
        assert set(threading.enumerate()) <= before

    async def test_a_closed_one_refuses_to_read(self, probe: ThreadedProbe) -> None:
        await probe.close()
        await probe.close()
        for _ in range(2):
            with pytest.raises(GpuUnhealthy, match="is closed"):
                await probe.read()

    def test_a_loop_that_ends_before_the_answer_harms_nothing(self, reader: NumberedReader) -> None:
        probe = ThreadedProbe(reader, deadline_s=0.05)
        reader.hang()
        with pytest.raises(GpuUnhealthy):
            asyncio.run(probe.read())
        reader.go.set()
        assert reader.closed.wait(LONG_S)


BATCHES, READS = 6, 50


async def test_a_read_costs_less_than_0_3_ms_over_the_readers_own_time(
    probe: ThreadedProbe,
) -> None:
    """Of the processor, and most reads last no longer: what others compute delays a few."""
    processor_s, lasted_s = [], []
    for _ in range(BATCHES):
        batch_s = []
        before_s = time.process_time()
        for _ in range(READS):
            begun = time.perf_counter()
            await probe.read()
            batch_s.append(time.perf_counter() - begun)
        processor_s.append((time.process_time() - before_s) / READS)
        lasted_s.append(statistics.median(batch_s))
    assert min(processor_s) < 0.0003, processor_s
    assert min(lasted_s) < 0.0003, lasted_s


class TestWithNvml:
    def test_a_call_that_hangs_ends_at_the_deadline_and_the_process_recovers(
        self, nvml: NvmlStandin
    ) -> None:
        with prober(nvml, deadline_s=0.3) as process:
            assert len(process.read()["gpus"]) == 2
            nvml.hang("nvmlDeviceGetMemoryInfo", gpu=0)
            for _ in range(2):
                answer = process.read()
                assert "NVML has not answered" in answer["error"]
                assert 0.3 <= answer["took_s"] < 1.0
            nvml.set_used_mib(1000, gpu=1)
            nvml.heal()
            assert process.read()["gpus"][1]["free_mib"] == 23576

    def test_the_process_exits_within_a_second_while_a_call_hangs(self, nvml: NvmlStandin) -> None:
        with prober(nvml, deadline_s=0.1) as process:
            nvml.hang()
            assert "NVML has not answered" in process.read()["error"]
            process.end_input()
            begun = time.monotonic()
            assert process.process.wait(timeout=10) == 0
            assert time.monotonic() - begun < 1.0

    def test_a_slow_library_is_waited_for(self, nvml: NvmlStandin) -> None:
        nvml.delay("nvmlDeviceGetMemoryInfo", 50)
        with prober(nvml) as process:
            answer = process.read()
        assert len(answer["gpus"]) == 2
        assert answer["took_s"] >= 0.1
