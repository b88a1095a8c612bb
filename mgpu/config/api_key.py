"""What an API key may look like."""

from __future__ import annotations

WHAT_A_KEY_IS = "a key is printable ASCII without blanks"


def can_be_sent(key: str) -> bool:
    """Whether a key fits into an ``Authorization`` header as one word."""
    return bool(key) and key.isascii() and key.isprintable() and " " not in key
