"""WAV files that know what is said in them.

Next to the samples stand two chunks that every reader of RIFF may skip: ``LIST``/``INFO`` with the
text as its comment (ICMT), and ``cue `` with one cue point where each word begins.
"""

from __future__ import annotations

import io
import struct
import sys
import wave
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SOFTWARE = "mgpu demo tts"
_SAMPLE_BYTES = 2


class NotAWavError(ValueError):
    """The bytes are no WAV file of 16-bit samples."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A WAV file read. ``text`` is None when nothing in the file says what is said in it."""

    rate_hz: int
    channels: int
    samples: array[int]
    text: str | None
    cues: tuple[int, ...]
    """Positions in frames (one sample of every channel)."""

    @property
    def seconds(self) -> float:
        """How long it plays."""
        return len(self.samples) / self.channels / self.rate_hz


def _chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\x00" * (len(body) % 2)


def encode_wav(samples: array[int], rate_hz: int, text: str, cues: Sequence[int]) -> bytes:
    """One channel of 16-bit samples, with the text and the beginnings of its words."""
    if sys.byteorder == "big":
        samples = samples[:]
        samples.byteswap()
    layout = struct.pack("<HHIIHH", 1, 1, rate_hz, rate_hz * _SAMPLE_BYTES, _SAMPLE_BYTES, 16)
    info = b"INFO" + _chunk(b"ISFT", SOFTWARE.encode() + b"\x00")
    info += _chunk(b"ICMT", text.encode() + b"\x00")
    points = b"".join(
        struct.pack("<II4sIII", i, at, b"data", 0, 0, at) for i, at in enumerate(cues)
    )
    body = (
        _chunk(b"fmt ", layout)
        + _chunk(b"data", samples.tobytes())
        + _chunk(b"cue ", struct.pack("<I", len(cues)) + points)
        + _chunk(b"LIST", info)
    )
    return _chunk(b"RIFF", b"WAVE" + body)


def decode_wav(content: bytes) -> Recording:
    """Read a WAV file; raises ``NotAWavError`` saying why when that is not possible."""
    try:
        with wave.open(io.BytesIO(content)) as reader:
            if reader.getsampwidth() != _SAMPLE_BYTES:
                raise NotAWavError(f"samples of {8 * reader.getsampwidth()} bits, not of 16")
            rate_hz, channels = reader.getframerate(), reader.getnchannels()
            samples = array("h", reader.readframes(reader.getnframes()))
    except (wave.Error, EOFError) as error:
        raise NotAWavError(f"not a WAV file: {error or 'it ends too early'}") from error
    if rate_hz == 0:
        raise NotAWavError("a sample rate of 0")
    if sys.byteorder == "big":
        samples.byteswap()
    chunks = dict(_chunks(content[12:]))
    info = dict(_chunks(chunks.get(b"LIST", b"")[4:]))
    ours = info.get(b"ISFT", b"").rstrip(b"\x00") == SOFTWARE.encode()
    text = info[b"ICMT"].rstrip(b"\x00").decode(errors="replace") if ours else None
    return Recording(rate_hz, channels, samples, text, _cues(chunks.get(b"cue ", b"")))


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 0
    while place + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, place)
        yield name, content[place + 8 : place + 8 + size]
        place += 8 + size + size % 2


def _cues(body: bytes) -> tuple[int, ...]:
    return tuple(
        struct.unpack_from("<I", body, place + 20)[0] for place in range(4, len(body) - 23, 24)
    )
