"""As much of PyTorch as ``tests/hardware/service.py`` uses, on the stand-in for NVML.

With it the GPU's tests are themselves tested where there is no GPU. A tensor's memory is held on
the stand-in GPU; when nothing is left, allocating fails as PyTorch's does. A context of its own
comes with the first use, as CUDA's does.
"""

# ruff: noqa: PLW0603 - a GPU's state is as global as can be

from __future__ import annotations

import os
from pathlib import Path

from mgpu.gpu.simulated import HeldMemory, held_mib

MIB = 1 << 20
CONTEXT_MIB = 400
uint8 = "uint8"

_directory = Path(os.environ["NVML_STANDIN_DIR"]) / "held" / "0"
_total_mib = int(os.environ["TORCH_STANDIN_TOTAL_MIB"])
_memory = HeldMemory(_directory)
_live_mib = 0
_reserved_mib = 0


class OutOfMemoryError(RuntimeError):
    """CUDA out of memory."""


class Tensor:
    def __init__(self, mib: int) -> None:
        global _live_mib
        self._mib = mib
        _live_mib += mib

    def __del__(self) -> None:
        global _live_mib
        _live_mib -= self._mib

    def fill_(self, _value: int) -> Tensor:
        return self

    def add_(self, _value: int) -> Tensor:
        return self


def empty(size: int, *, dtype: str, device: str) -> Tensor:
    global _reserved_mib
    assert (dtype, device) == (uint8, "cuda")
    mib = size // MIB
    if _live_mib + mib > _reserved_mib:
        grows_mib = _live_mib + mib - _reserved_mib + CONTEXT_MIB * (not _reserved_mib)
        if sum(held_mib(_directory).values()) + grows_mib > _total_mib:
            raise OutOfMemoryError(f"CUDA out of memory. Tried to allocate {mib} MiB.")
        _reserved_mib = _live_mib + mib
        _memory.hold(f"process-{os.getpid()}", _reserved_mib + CONTEXT_MIB)
    return Tensor(mib)


class cuda:  # noqa: N801 - PyTorch's name
    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def synchronize() -> None:
        pass

    @staticmethod
    def memory_reserved() -> int:
        return _reserved_mib * MIB

    @staticmethod
    def empty_cache() -> None:
        global _reserved_mib
        if _reserved_mib:
            _reserved_mib = _live_mib
            _memory.hold(f"process-{os.getpid()}", _reserved_mib + CONTEXT_MIB)
