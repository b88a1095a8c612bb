"""A language model small enough to read: which word follows which two (a Markov chain, order 2).

C. E. Shannon, "A mathematical theory of communication" (1948), section 3, describes the method.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

_TEXT = """
The harbour has one deep berth and many ships. A ship that wants to unload must lie at the berth,
and a large ship needs the whole of it. The harbour master keeps a list of the ships that wait and
a chart of the ships that lie there now. When a ship asks for the berth, the harbour master looks
at the chart first. If there is room, the ship comes in at once. If there is no room, the harbour
master asks the ship that has been idle for the longest time to leave. A ship that works is never
asked to leave. A ship that is asked to leave needs a while to cast off, and the water it leaves
is free only when it has really gone. The harbour master does not believe a ship that says it has
left. The harbour master looks at the water. Some ships are small and lie beside a large ship for
the whole night. Some ships are so large that the berth can never hold them, and they are told so
at the mouth of the harbour. No ship waits for ever. A ship that has waited long enough goes before
every other ship, however small the other ship may be. When the night is quiet, the ships that lie
at the berth stay where they are, because a ship that is there already need not be brought in.
When the morning comes, the list is long and the chart is full. The harbour master reads the whole
list before asking any ship to leave, because two ships of the same kind can come in one after the
other, and the water is free for both of them. A good harbour is not one with a great deal of
water. A good harbour is one where the water is never empty while a ship waits. The ships come from
far away and carry pictures, voices and words. They do not know each other, and they do not need
to. They know the harbour master, and the harbour master knows the water.
"""
_END = re.compile(r"[.]$")


@cache
def _followers() -> dict[tuple[str, str], list[str]]:
    words = _TEXT.split()
    followers: dict[tuple[str, str], list[str]] = defaultdict(list)
    # The text is a ring, so that every pair of words has a successor.
    ring = [*words, *words[:2]]
    for pair, word in zip(pairwise(ring), ring[2:], strict=False):
        followers[pair].append(word)
    return followers


def tokens(prompt: str, seed: int, limit: int) -> Iterator[str]:
    """At most ``limit`` words, each with the space before it; ends with a sentence.

    The first sentence begins with a word of the prompt where the text knows one. Same arguments,
    same words.
    """
    rng = random.Random(f"{seed}:{prompt}")  # noqa: S311 - prose, not a secret
    followers = _followers()
    asked = set(re.findall(r"[a-z]{4,}", prompt.lower()))
    starts = [pair for pair in followers if pair[0][0].isupper()]
    fitting = [pair for pair in starts if asked & {word.lower() for word in pair}]
    pair = rng.choice(fitting or starts)
    told = 0
    for word in pair:
        if told < limit:
            yield word if told == 0 else f" {word}"
            told += 1
    # A sentence that begins in the last third of the limit is left unsaid.
    while told < limit and not (_END.search(pair[1]) and told > limit * 2 // 3):
        pair = (pair[1], rng.choice(followers[pair]))
        yield f" {pair[1]}"
        told += 1
