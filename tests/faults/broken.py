"""How a promise is said to be broken."""

from __future__ import annotations


class BrokenPromiseError(AssertionError):
    """The scheduler did what it must not, or did not do what it must."""


def hold(condition: bool, message: str) -> None:
    """Raise when a promise is broken."""
    if not condition:
        raise BrokenPromiseError(message)
