"""What a program prints, as lines of the broker's log, without letting it flood the log.

Lines end where a terminal would begin a new one or write over the old one (progress bars), are cut
at 1000 characters and are counted: of more than 1000 within a second the rest is left out, and how
many there were is said (llama.cpp describes a model in 300). The last ones are kept, for when the
program has died.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Iterable

import structlog

from mgpu.telemetry.redaction import Redactor

MAX_LINE = 1000
MAX_LINES_PER_S = 1000
LAST_LINES = 5
LAST_WORDS_CHARS = 600
_READ_BYTES = 1 << 14
_END_OF_LINE = re.compile(rb"[\r\n]+")
_TERMINAL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""Colours and cursor movements (ECMA-48 control sequences)."""

_log = structlog.get_logger(__name__)


class OutputLog:
    """The output of one life of a consumer's program.

    ``secrets`` are kept out of the last words, which are told to clients too; the log has its own
    ways to keep them out.
    """

    def __init__(self, consumer: str, secrets: Iterable[str] = ()) -> None:
        self._consumer = consumer
        self._redactor = Redactor(secrets)
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._second = 0
        self._lines = 0

    async def follow(self, stream: asyncio.StreamReader) -> None:
        """Log every line until the stream ends."""
        begun = b""
        while chunk := await stream.read(_READ_BYTES):
            *lines, begun = _END_OF_LINE.split(begun + chunk)
            for line in lines:
                self._take(line)
            if len(begun) > MAX_LINE:
                self._take(begun)
                begun = b""
        self._take(begun)
        self._tell_left_out()

    def last_words(self) -> str:
        """What it said last, as a clause to add to how it ended; empty when it said nothing."""
        said = " | ".join(self._last)
        return f", it said last: {said[-LAST_WORDS_CHARS:]}" if said else ""

    def _take(self, raw: bytes) -> None:
        line = _TERMINAL.sub("", raw.decode(errors="replace"))
        line = "".join(char if char.isprintable() else " " for char in line).strip()[:MAX_LINE]
        if not line:
            return
        self._last.append(self._redactor.text(line))
        second = int(time.monotonic())
        if second != self._second:
            self._tell_left_out()
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines <= MAX_LINES_PER_S:
            _log.info("output", consumer=self._consumer, line=line)

    def _tell_left_out(self) -> None:
        if (left_out := self._lines - MAX_LINES_PER_S) > 0:
            _log.warning("output left out", consumer=self._consumer, lines=left_out)
