from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from mgpu.consumers import output
from mgpu.consumers.output import OutputLog

Logs = list[MutableMapping[str, Any]]


async def followed(*chunks: bytes) -> tuple[OutputLog, Logs]:
    stream = asyncio.StreamReader()
    log = OutputLog("tts")
    with capture_logs() as logs:
        following = asyncio.create_task(log.follow(stream))
        for chunk in chunks:
            stream.feed_data(chunk)
            await asyncio.sleep(0)
        stream.feed_eof()
        await following
    return log, logs


def lines(logs: Logs) -> list[str]:
    return [log["line"] for log in logs if log["event"] == "output"]


async def test_each_line_is_a_line_of_the_log_with_the_consumers_name() -> None:
    _, logs = await followed(b"one\ntw", b"o\n\n  three\r\nlast")
    assert lines(logs) == ["one", "two", "three", "last"]
    assert {log["consumer"] for log in logs} == {"tts"}


async def test_a_progress_bar_is_taken_step_by_step_and_colours_are_left_out() -> None:
    _, logs = await followed(b"\x1b[32m 10%\x1b[0m\r 20%\r\x1b[1;31mdone\x1b[0m\n")
    assert lines(logs) == ["10%", "20%", "done"]


async def test_what_is_no_text_is_shown_as_such() -> None:
    _, logs = await followed(b"a\xff\x00b\n")
    assert lines(logs) == ["a\ufffd b"]


async def test_a_line_without_an_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    _, logs = await followed(b"x" * 5000)
    assert {len(line) for line in lines(logs)} == {output.MAX_LINE}


async def test_a_flood_is_cut_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgpu.consumers.output.time.monotonic", lambda: 7.0)
    log, logs = await followed(b"x\n" * 1800, b"the end\n")
    assert len(lines(logs)) == output.MAX_LINES_PER_S
    assert logs[-1] == {
        "event": "output left out",
        "log_level": "warning",
        "consumer": "tts",
        "lines": 801,
    }
    assert log.last_words() == ", it said last: x | x | x | x | the end"


async def test_who_said_nothing_has_no_last_words() -> None:
    log, _ = await followed()
    assert log.last_words() == ""
