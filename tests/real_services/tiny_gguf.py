"""Writes a language model of random weights, half a megabyte small: ``tiny_gguf.py FILE``.

The architecture is LLaMA's and the vocabulary bytes and a few words, so that real servers load it
and say nonsense, quickly: words without end, for as many tokens as were asked for. It is run by
the Python that has the server, not by the tests' own.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np

WIDTH, INNER, HEADS, LAYERS, CONTEXT = 64, 128, 4, 2, 8192
WORDS = "the a cat dog sat on mat ran and is was it"

random = np.random.default_rng(0)


def noise(*shape: int) -> object:
    return (random.standard_normal(shape) * 0.1).astype(np.float32)


def only_words(tokens: int) -> object:
    """The last layer: a word is always likelier than a byte, which may be no text, or an end."""
    weights = np.zeros((tokens, WIDTH), np.float32)
    weights[-len(WORDS.split()) :] = random.standard_normal((len(WORDS.split()), WIDTH)) * 2
    return weights


def main() -> None:
    types = gguf.TokenType
    tokens = [(b"<unk>", types.UNKNOWN), (b"<s>", types.CONTROL), (b"</s>", types.CONTROL)]
    tokens += [(f"<0x{byte:02X}>".encode(), types.BYTE) for byte in range(256)]
    tokens += [(f"\u2581{word}".encode(), types.NORMAL) for word in WORDS.split()]

    writer = gguf.GGUFWriter(sys.argv[1], "llama")
    writer.add_name(Path(sys.argv[1]).stem)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    writer.add_tensor("token_embd.weight", noise(len(tokens), WIDTH))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    writer.add_tensor("output.weight", only_words(len(tokens)))
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(WIDTH, np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", noise(WIDTH, WIDTH))
        writer.add_tensor(f"blk.{layer}.ffn_gate.weight", noise(INNER, WIDTH))
        writer.add_tensor(f"blk.{layer}.ffn_up.weight", noise(INNER, WIDTH))
        writer.add_tensor(f"blk.{layer}.ffn_down.weight", noise(WIDTH, INNER))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
