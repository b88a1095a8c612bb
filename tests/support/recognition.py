"""What ``mgpu init`` takes a service for."""

from __future__ import annotations

from pathlib import Path

from mgpu.config import presets
from mgpu.consumers.wire import control_session
from mgpu.discovery.fingerprints import questions, recognise
from mgpu.discovery.listeners import Listener


async def recognised(url: str) -> list[str]:
    """The names of the presets that fit what answers at this URL."""
    nowhere = Path("/nowhere")
    known = questions([presets.find(name, nowhere) for name in presets.names(nowhere)])
    listener = Listener(int(url.rpartition(":")[2]), ("127.0.0.1",), exposed=False)
    async with control_session() as session:
        verdict = await recognise(listener, known, session)
    return [found.name for found in verdict.presets]
