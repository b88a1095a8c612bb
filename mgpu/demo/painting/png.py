"""The least of PNG (ISO/IEC 15948) that an RGB picture needs: IHDR, tEXt, IDAT, IEND."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EIGHT_BIT_RGB = (8, 2, 0, 0, 0)
_NO_FILTER = b"\x00"


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def encode_png(width: int, height: int, rows: Iterable[bytes]) -> bytes:
    """Encode rows of ``3 * width`` bytes (red, green, blue), the top row first."""
    pixels = b"".join(_NO_FILTER + row for row in rows)
    return b"".join(
        (
            SIGNATURE,
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, *_EIGHT_BIT_RGB)),
            _chunk(b"tEXt", b"Software\x00mgpu demo"),
            _chunk(b"IDAT", zlib.compress(pixels, 6)),
            _chunk(b"IEND", b""),
        )
    )
