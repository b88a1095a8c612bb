"""What holds for the process of every test."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Let Ctrl-C end what the tests start, also where nobody can press it.

    A shell without job control has what it runs in the background ignore SIGINT, and whatever that
    starts inherits it: a command that a test interrupts would go on for ever.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
