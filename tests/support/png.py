"""An independent reader of PNG, as strict as the tests need it."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Picture:
    size: tuple[int, int]
    rows: tuple[bytes, ...]


def read_png(content: bytes) -> Picture:
    """Check the signature, every chunk's CRC and order, and the amount of data."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    chunks: list[tuple[bytes, bytes]] = []
    place = 8
    while place < len(content):
        (length,) = struct.unpack_from(">I", content, place)
        kind, body = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        (crc,) = struct.unpack_from(">I", content, place + 8 + length)
        assert crc == zlib.crc32(body, zlib.crc32(kind)), f"{kind!r} is damaged"
        chunks.append((kind, body))
        place += 12 + length
    assert chunks[0][0] == b"IHDR"
    assert chunks[-1] == (b"IEND", b"")
    width, height, *layout = struct.unpack(">IIBBBBB", chunks[0][1])
    assert layout == [8, 2, 0, 0, 0]
    data = zlib.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"))
    stride = 1 + 3 * width
    assert len(data) == stride * height
    assert all(data[y * stride] == 0 for y in range(height)), "a filter was used"
    rows = tuple(data[y * stride + 1 : (y + 1) * stride] for y in range(height))
    return Picture((width, height), rows)
