"""One call for each of what a consumer says it has: models to unload, a session to ask with.

What a consumer names goes into a request to that same consumer, so it is taken for hostile: it is
encoded for the place it is put in, and one that could lead elsewhere is refused.
"""

from __future__ import annotations

from mgpu.config.model import UnloadConfig
from mgpu.config.placeholders import fill
from mgpu.consumers.probe import evaluate
from mgpu.consumers.wire import Answer

MAX_ITEMS = 256
MAX_ITEM_CHARS = 1024


def items(expression: str, answer: Answer) -> tuple[str, ...]:
    """The texts or numbers that a JMESPath finds in an answer, each once; null is none.

    Raises ``ValueError`` with a sentence when it finds anything else, or too much.
    """
    found = evaluate(expression, answer)
    if found is None:
        return ()
    if not isinstance(found, list) or not all(
        isinstance(item, str | int) and not isinstance(item, bool) for item in found
    ):
        raise ValueError(f"{expression!r} gives no list of names")
    names = tuple(dict.fromkeys(map(str, found)))
    if len(names) > MAX_ITEMS:
        raise ValueError(f"{expression!r} gives more than {MAX_ITEMS} names")
    if not all(0 < len(name) <= MAX_ITEM_CHARS and name.isprintable() for name in names):
        raise ValueError(f"{expression!r} gives a name that is empty, too long or not printable")
    return names


def rendered(call: UnloadConfig, item: str) -> UnloadConfig:
    """The call for one item; raise ``ValueError`` for an item that cannot be put where it goes."""
    filled = fill(call.model_dump(include={"path", "body", "headers"}), {"item": item})
    return call.model_copy(update=filled)
