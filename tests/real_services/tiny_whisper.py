"""Writes a model for whisper.cpp that says the same words whatever it hears, in an old ggml file.

The architecture is Whisper's, of one layer and 64 numbers for each token. All its weights are 0,
save for the embeddings: that of each position points at that of the word which stands there.
The file has the order that whisper.cpp's ``models/convert-pt-to-ggml.py`` writes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

WORDS = (" the", " cat", " sat", " on", " a", " mat")
SAID = "".join(WORDS).strip()

_VOCABULARY = 51865
"""The smallest with which whisper.cpp knows of languages."""
_END = 50257
_BEFORE = 2
"""Tokens that say the language and the task stand before the one that the first word follows."""
_WIDTH, _AUDIO_LENGTH, _TEXT_LENGTH, _MELS, _FREQUENCIES = 64, 1500, 64, 80, 201
_LOUD = 1000.0
"""A position against the token that stands there."""
_SURE = 4.0
_F32, _F16 = 0, 1


def write_tiny_whisper(path: Path) -> None:
    """Write the model, of 7 MB, to this file."""
    sizes = [_VOCABULARY, _AUDIO_LENGTH, _WIDTH, 1, 1, _TEXT_LENGTH, _WIDTH, 1, 1, _MELS, _F16]
    with path.open("wb") as file:
        file.write(b"lmgg" + struct.pack("<11i", *sizes))
        file.write(struct.pack("<2i", _MELS, _FREQUENCIES) + bytes(4 * _MELS * _FREQUENCIES))
        # What has no text here is named by whisper.cpp itself; a space has to be there.
        texts = [text.encode() for text in (*WORDS, " ")]
        file.write(struct.pack("<i", len(texts)))
        file.writelines(struct.pack("<i", len(text)) + text for text in texts)
        for name, shape, kind in _tensors():
            data = bytearray((4 if kind == _F32 else 2) * _elements(shape))
            _fill(name, data)
            header = struct.pack("<3i", len(shape), len(name), kind)
            # The dimension that changes fastest is first.
            file.write(header + struct.pack(f"<{len(shape)}i", *reversed(shape)))
            file.write(name.encode() + data)


def _fill(name: str, data: bytearray) -> None:
    """Put in the weights that are not 0."""
    row = len(WORDS)
    match name:
        case "decoder.ln.weight":
            data[:] = struct.pack(f"<{_WIDTH}f", *[1.0] * _WIDTH)
        case "decoder.positional_embedding":
            for place in range(row + 1):
                at = (_BEFORE + place) * _WIDTH + place
                struct.pack_into("<f", data, 4 * at, _LOUD)
        case "decoder.token_embedding.weight":
            for place, token in enumerate((*range(row), _END)):
                struct.pack_into("<e", data, 2 * (token * _WIDTH + place), _SURE)


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for each in shape:
        count *= each
    return count


def _tensors() -> Iterator[tuple[str, tuple[int, ...], int]]:
    """The name, shape and type of each."""
    yield "encoder.positional_embedding", (_AUDIO_LENGTH, _WIDTH), _F32
    for name, inputs in (("conv1", _MELS), ("conv2", _WIDTH)):
        yield f"encoder.{name}.weight", (_WIDTH, inputs, 3), _F16
        yield f"encoder.{name}.bias", (_WIDTH, 1), _F32
    yield from _norm("encoder.ln_post")
    yield from _block("encoder.blocks.0", ("attn",))
    yield "decoder.positional_embedding", (_TEXT_LENGTH, _WIDTH), _F32
    yield "decoder.token_embedding.weight", (_VOCABULARY, _WIDTH), _F16
    yield from _norm("decoder.ln")
    yield from _block("decoder.blocks.0", ("attn", "cross_attn"))


def _block(name: str, attentions: tuple[str, ...]) -> Iterator[tuple[str, tuple[int, ...], int]]:
    for attention in attentions:
        yield from _norm(f"{name}.{attention}_ln")
        for part in ("query", "key", "value", "out"):
            yield f"{name}.{attention}.{part}.weight", (_WIDTH, _WIDTH), _F16
            if part != "key":
                yield f"{name}.{attention}.{part}.bias", (_WIDTH,), _F32
    yield from _norm(f"{name}.mlp_ln")
    for part, outputs, inputs in (("0", 4 * _WIDTH, _WIDTH), ("2", _WIDTH, 4 * _WIDTH)):
        yield f"{name}.mlp.{part}.weight", (outputs, inputs), _F16
        yield f"{name}.mlp.{part}.bias", (outputs,), _F32


def _norm(name: str) -> Iterator[tuple[str, tuple[int, ...], int]]:
    yield f"{name}.weight", (_WIDTH,), _F32
    yield f"{name}.bias", (_WIDTH,), _F32
