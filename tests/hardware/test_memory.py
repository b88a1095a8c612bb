"""What NVML says of memory that services really take and give back."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.hardware.conftest import Hardware, Rig
from tests.hardware.figures import Figures

pytestmark = pytest.mark.gpu

WEIGHTS_MIB = 2048
CONTEXT_AT_MOST_MIB = 2048
SETTLED_S = 5.0


async def until_free(hardware: Hardware, at_least_mib: int) -> float:
    """Read until that much is free; seconds it took."""
    begun = time.perf_counter()
    async with asyncio.timeout(SETTLED_S):
        while (hardware.read().free_mib or 0) < at_least_mib:  # noqa: ASYNC110 - NVML cannot tell
            await asyncio.sleep(0.001)
    return time.perf_counter() - begun


def test_a_gpu_has_a_name_a_uuid_and_no_more_free_than_in_all(hardware: Hardware) -> None:
    gpu = hardware.read()

    assert gpu.error is None
    assert gpu.name
    assert gpu.uuid.startswith("GPU-")
    assert 0 < (gpu.free_mib or 0) <= gpu.total_mib


def test_a_reading_takes_a_few_milliseconds(hardware: Hardware, figures: Figures) -> None:
    took = []
    for _ in range(200):
        begun = time.perf_counter()
        hardware.read()
        took.append(time.perf_counter() - begun)
    took.sort()

    figures.add(
        "one reading of NVML, p50 / p99", f"{took[100] * 1e3:.2f} / {took[197] * 1e3:.2f} ms"
    )
    assert took[100] < 0.05


async def test_loading_takes_the_weights_and_a_context_and_unloading_leaves_the_context(
    rig: Rig, figures: Figures
) -> None:
    hardware = rig.hardware
    service = await rig.service("one", WEIGHTS_MIB)
    before_mib = hardware.read().free_mib or 0

    begun = time.perf_counter()
    await service.post("/load")
    load_s = time.perf_counter() - begun
    loaded_mib = before_mib - (hardware.read().free_mib or 0)
    assert WEIGHTS_MIB <= loaded_mib <= WEIGHTS_MIB + CONTEXT_AT_MOST_MIB

    await service.post("/unload")
    unloaded_s = await until_free(hardware, before_mib - CONTEXT_AT_MOST_MIB)
    residual_mib = before_mib - (hardware.read().free_mib or 0)
    assert 0 <= residual_mib <= CONTEXT_AT_MOST_MIB

    service.process.kill()
    await service.process.wait()
    killed_s = await until_free(hardware, before_mib)

    figures.add(f"loading {WEIGHTS_MIB} MiB into a new context", f"{load_s:.2f} s")
    figures.add("context that stays after an unload (residual)", f"{residual_mib} MiB")
    figures.add("unload answered until NVML shows it", f"{unloaded_s * 1e3:.1f} ms")
    figures.add("process killed until NVML shows it", f"{killed_s * 1e3:.1f} ms")
