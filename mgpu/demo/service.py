"""One demo consumer as a process: ``python -m mgpu.demo.service KIND --port 0 --vram-dir DIR``.

It listens on 127.0.0.1, says where in one line of JSON on standard output, and holds its memory on
the simulated GPU of that directory until SIGTERM or SIGINT ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from aiohttp import web

from mgpu.demo import image, language, stt, tts
from mgpu.demo.catalogue import CATALOGUE, Kind
from mgpu.demo.weights import Weights
from mgpu.gpu.simulated import HeldMemory

_HOST = "127.0.0.1"
_GRACE_S = 0.5
_BUILD: dict[Kind, Callable[[Weights], web.Application]] = {
    Kind.IMAGE: image.build,
    Kind.TTS: tts.build,
    Kind.STT: stt.build,
    Kind.LANGUAGE: language.build,
}


class _Held:
    """The process's memory on the simulated GPU, under the consumer's name."""

    def __init__(self, memory: HeldMemory, name: str) -> None:
        self._memory = memory
        self._name = name

    def hold(self, mib: int) -> None:
        self._memory.hold(self._name, mib)


async def serve(  # noqa: PLR0913 - the command line's options
    kind: Kind,
    port: int,
    vram_dir: Path,
    time_scale: float,
    *,
    announce: bool,
    ends_with: int | None = None,
) -> None:
    """Run one consumer until a signal ends it; jobs that still run then have half a second.

    It also ends with the process ``ends_with``: nothing stays behind when the demo is killed.
    """
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    if ends_with is not None:
        # A process's descriptor becomes readable when the process ends: pidfd_open(2).
        loop.add_reader(os.pidfd_open(ends_with), ended.set)
    with HeldMemory(vram_dir) as memory:
        weights = Weights(
            CATALOGUE[kind].scaled(time_scale), _Held(memory, kind), lazy=kind is Kind.IMAGE
        )
        runner = web.AppRunner(
            _BUILD[kind](weights),
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=_GRACE_S,
        )
        try:
            await runner.setup()
            await web.TCPSite(runner, _HOST, port).start()
            if announce:
                line = json.dumps({"kind": kind, "port": runner.addresses[0][1]})
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()
            await ended.wait()
        finally:
            await runner.cleanup()
            weights.close()


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not greater than 0")
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m mgpu.demo.service", description=__doc__)
    parser.add_argument("kind", type=Kind, choices=list(Kind), help="what to make")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--vram-dir", type=Path, required=True, help="the simulated GPU")
    parser.add_argument("--time-scale", type=_positive, default=1.0, help="0.1: ten times as fast")
    parser.add_argument(
        "--announce",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="say on standard output where it listens",
    )
    parser.add_argument("--ends-with", type=int, metavar="PID", help="end when that process does")
    options = parser.parse_args(arguments)
    asyncio.run(
        serve(
            options.kind,
            options.port,
            options.vram_dir,
            options.time_scale,
            announce=options.announce,
            ends_with=options.ends_with,
        )
    )


if __name__ == "__main__":
    main()
