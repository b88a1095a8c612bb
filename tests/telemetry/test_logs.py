from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from mgpu.errors import ConfigError
from mgpu.telemetry import logs


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hooks = sys.excepthook, threading.excepthook
    root.handlers = []
    yield
    logging.captureWarnings(capture=False)
    root.handlers, sys.excepthook, threading.excepthook = handlers, *hooks
    root.setLevel(level)
    structlog.reset_defaults()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def configure(**environ: str) -> io.StringIO:
    stream = io.StringIO()
    logs.configure(secrets=["hunter2"], stream=stream, environ=environ)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object_when_no_terminal_reads_it() -> None:
    stream = configure()
    structlog.get_logger("mgpu.x").info("hello", consumer="tts", n=1)
    [line] = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "hello",
        "level": "info",
        "logger": "mgpu.x",
        "consumer": "tts",
        "n": 1,
    }


def test_the_standard_librarys_logging_takes_the_same_way() -> None:
    stream = configure()
    logging.getLogger("aiohttp").warning("%s with %s", "late", "hunter2", extra={"status": 500})
    [line] = lines(stream)
    assert line["event"] == "late with [redacted]"
    assert (line["level"], line["logger"], line["status"]) == ("warning", "aiohttp", 500)


def test_a_terminal_gets_colours_and_no_json() -> None:
    terminal = Terminal()
    logs.configure(secrets=["hunter2"], stream=terminal, environ={})
    structlog.get_logger().info("hello hunter2", x="hunter2")
    assert "\x1b[" in terminal.getvalue()
    assert "hello" in terminal.getvalue()
    assert "hunter2" not in terminal.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_tracebacks_are_written_without_secrets(stream: type[io.StringIO]) -> None:
    written = stream()
    logs.configure(secrets=["hunter2"], stream=written, environ={})
    try:
        raise RuntimeError("called with hunter2") from ValueError("hunter2 again")
    except RuntimeError:
        structlog.get_logger().exception("failed")
        logging.getLogger("other").exception("failed")
    assert written.getvalue().count("RuntimeError: called with [redacted]") == 2
    assert "hunter2" not in written.getvalue()


def test_the_level_comes_from_the_environment_and_is_info_by_default() -> None:
    stream = configure()
    structlog.get_logger().debug("no")
    logging.getLogger().debug("no")
    assert lines(stream) == []
    stream = configure(MGPU_LOG_LEVEL="DEBUG")
    structlog.get_logger().debug("yes")
    assert [line["event"] for line in lines(stream)] == ["yes"]


def test_a_level_that_is_none_is_an_error_that_names_the_variable_and_the_levels() -> None:
    with pytest.raises(ConfigError, match=r"MGPU_LOG_LEVEL='loud' is not one of debug, info"):
        configure(MGPU_LOG_LEVEL="loud")


def test_setting_up_twice_does_not_write_twice() -> None:
    configure()
    stream = configure()
    structlog.get_logger().info("once")
    assert len(lines(stream)) == 1


def test_in_the_journal_a_line_begins_with_its_priority_and_has_no_timestamp(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal"
    with path.open("w") as stream:
        stat = os.fstat(stream.fileno())
        environ = {"JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}"}
        logs.configure(stream=stream, environ=environ)
        structlog.get_logger().error("bad")
        logging.getLogger("other").info("good")
    first, second = path.read_text().splitlines()
    assert first.startswith("<3>{")
    assert second.startswith("<6>{")
    assert "timestamp" not in json.loads(first[3:])


def test_a_journal_stream_variable_of_another_stream_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w") as stream:
        logs.configure(stream=stream, environ={"JOURNAL_STREAM": "1:1"})
        structlog.get_logger().info("hello")
    assert "timestamp" in json.loads(path.read_text())


def test_an_uncaught_exception_is_a_line_without_secrets() -> None:
    program = (
        "import threading\n"
        "from mgpu.telemetry import logs\n"
        "logs.configure(secrets=['hunter2'])\n"
        "def fail(): raise RuntimeError('hunter2')\n"
        "thread = threading.Thread(target=fail); thread.start(); thread.join()\n"
        "fail()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    written = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["event"] for line in written] == ["uncaught exception"] * 2
    assert all("RuntimeError: [redacted]" in line["exception"] for line in written)


def test_an_interrupt_from_the_keyboard_is_no_log_line() -> None:
    program = "from mgpu.telemetry import logs\nlogs.configure()\nraise KeyboardInterrupt\n"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stderr.startswith("Traceback")
    assert "uncaught exception" not in done.stderr


def test_a_bound_context_is_on_every_line() -> None:
    stream = configure()
    with structlog.contextvars.bound_contextvars(job="j1"):
        structlog.get_logger().info("a")
        logging.getLogger("x").info("b")
    assert [line["job"] for line in lines(stream)] == ["j1", "j1"]
