"""A process that reads GPUs as the broker does: one JSON answer per line ``read`` on its input.

It ends with its input, without closing anything. Argument: the probe's deadline in seconds.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict

from mgpu.errors import GpuUnhealthy
from mgpu.gpu.nvml import NvmlReader
from mgpu.gpu.thread import ThreadedProbe


async def answer(probe: ThreadedProbe) -> dict[str, object]:
    begun = time.monotonic()
    try:
        gpus = [asdict(reading) for reading in await probe.read()]
    except GpuUnhealthy as error:
        return {"error": error.detail, "took_s": time.monotonic() - begun}
    return {"gpus": gpus, "took_s": time.monotonic() - begun}


def main() -> None:
    probe = ThreadedProbe(NvmlReader(reinit_interval_s=0.0), deadline_s=float(sys.argv[1]))
    with asyncio.Runner() as runner:
        for _ in sys.stdin:
            sys.stdout.write(json.dumps(runner.run(answer(probe))) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
