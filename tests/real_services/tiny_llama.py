"""Writes a LLaMA of random weights for transformers, 3 MB small: ``tiny_llama.py FOLDER``.

Its vocabulary is a few words; its many layers make it slow enough to be seen at work. It is run by
the Python that has the server, not by the tests' own.
"""

from __future__ import annotations

import sys

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = "<unk> <s> </s> user assistant : the a cat dog sat on mat ran and is was it"
CONTEXT = 8192
TEMPLATE = "{% for each in messages %}{{ each.role }} : {{ each.content }} {% endfor %}assistant :"


def main() -> None:
    folder = sys.argv[1]
    numbers = {word: number for number, word in enumerate(WORDS.split())}
    splitter = Tokenizer(WordLevel(numbers, unk_token="<unk>"))
    splitter.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=splitter, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(numbers),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=16,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


if __name__ == "__main__":
    main()
