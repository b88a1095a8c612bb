"""Writes a model for faster-whisper: ``tiny_faster_whisper.py HF_HOME OWNER/NAME LAYERS``.

It lands in Hugging Face's cache, and says the same words whatever it hears: all its weights are 0,
save for the embeddings, where that of each position points at that of the word which stands there.
Many layers make it slow enough to be seen at work, and its file no larger, as those that are alike
are written once. It is run by the Python that has the server, not by the tests' own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from ctranslate2.specs import WhisperSpec
from ctranslate2.specs.attention_spec import MultiHeadAttentionSpec
from ctranslate2.specs.common_spec import LayerNormSpec
from ctranslate2.specs.transformer_spec import FeedForwardSpec
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as Bytes
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

WORDS = ("Ġthe", "Ġcat", "Ġsat", "Ġon", "Ġa", "Ġmat")
"""What it says. The letter stands for a space."""
SPECIAL = (
    *("<|endoftext|>", "<|startoftranscript|>", "<|translate|>", "<|transcribe|>"),
    *("<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"),
    *(f"<|{step * 0.02:.2f}|>" for step in range(1501)),
)
BEFORE = 1
"""It knows one language, so that one token stands before the one that the first word follows."""
WIDTH, AUDIO_LENGTH, TEXT_LENGTH, MELS = 64, 1500, 448, 80
LOUD = 1000.0
"""A position against the token that stands there."""
SURE = 4.0
CARD = """---
library_name: ctranslate2
pipeline_tag: automatic-speech-recognition
language: [en]
---
"""


def main() -> None:
    home, model, layers = sys.argv[1:]
    folder = Path(home, "hub", f"models--{model.replace('/', '--')}")
    snapshot = folder / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0")
    (snapshot / "README.md").write_text(CARD)
    (snapshot / "preprocessor_config.json").write_text(json.dumps({"feature_size": MELS}))
    tokens = [*sorted(ByteLevel.alphabet()), *WORDS, *SPECIAL]
    tokenizer(tokens).save(str(snapshot / "tokenizer.json"))
    spec = weights(tokens, int(layers))
    spec.register_vocabulary(tokens)
    spec.config.suppress_ids, spec.config.suppress_ids_begin = [], []
    spec.config.lang_ids, spec.config.alignment_heads = [], [(0, 0)]
    spec.validate()
    spec.optimize()
    spec.save(str(snapshot))


def tokenizer(tokens: list[str]) -> Tokenizer:
    words = Tokenizer(BPE({token: number for number, token in enumerate(tokens)}, merges=[]))
    words.pre_tokenizer = ByteLevel(add_prefix_space=False)
    words.decoder = Bytes()
    words.add_special_tokens(list(SPECIAL))
    return words


def weights(tokens: list[str], layers: int) -> WhisperSpec:
    spec = WhisperSpec(1, 1, layers, 1)
    encoder, decoder = spec.encoder, spec.decoder
    for conv, inputs in ((encoder.conv1, MELS), (encoder.conv2, WIDTH)):
        conv.weight, conv.bias = zeros(WIDTH, inputs, 3), zeros(WIDTH)
    encoder.position_encodings.encodings = zeros(AUDIO_LENGTH, WIDTH)
    for each in encoder.layer:
        attention(each.self_attention, 3, 1)
        feed_forward(each.ffn)
    for each in decoder.layer:
        attention(each.self_attention, 3, 1)
        attention(each.attention, 1, 2, 1)
        feed_forward(each.ffn)
    neutral(encoder.layer_norm)
    neutral(decoder.layer_norm)
    positions = zeros(TEXT_LENGTH, WIDTH)
    embeddings = zeros(len(tokens), WIDTH)
    for place, token in enumerate((*WORDS, "<|endoftext|>")):
        positions[BEFORE + place, place] = LOUD
        embeddings[tokens.index(token), place] = SURE
    decoder.position_encodings.encodings = positions
    decoder.embeddings.weight = decoder.projection.weight = embeddings
    return spec


def attention(part: MultiHeadAttentionSpec, *sizes: int) -> None:
    neutral(part.layer_norm)
    for linear, size in zip(part.linear, sizes, strict=True):
        linear.weight, linear.bias = zeros(size * WIDTH, WIDTH), zeros(size * WIDTH)


def feed_forward(part: FeedForwardSpec) -> None:
    neutral(part.layer_norm)
    part.linear_0.weight, part.linear_0.bias = zeros(4 * WIDTH, WIDTH), zeros(4 * WIDTH)
    part.linear_1.weight, part.linear_1.bias = zeros(WIDTH, 4 * WIDTH), zeros(WIDTH)


def neutral(norm: LayerNormSpec) -> None:
    norm.gamma, norm.beta = np.ones(WIDTH, np.float32), zeros(WIDTH)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


if __name__ == "__main__":
    main()
