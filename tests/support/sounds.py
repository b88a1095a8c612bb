"""Sounds to be heard by services that listen."""

from __future__ import annotations

import io
import wave


def silence(seconds: float, *, rate: int = 16_000, channels: int = 1) -> bytes:
    """A WAV file of so many seconds, with 16 bits for each sample."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((channels, 2, rate, 0, "NONE", "not compressed"))
        sound.writeframes(bytes(int(seconds * rate) * channels * 2))
    return file.getvalue()
