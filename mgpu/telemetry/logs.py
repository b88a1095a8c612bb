"""Log set-up: one chain of processors for structlog's events and the standard library's alike.

Lines go to standard error: in colour for a person at a terminal, as one JSON object each for
everything else. When standard error is the systemd journal the timestamp is left out (the journal
has its own) and the line begins with its priority as ``<N>``, which the journal takes off and
stores, so that ``journalctl -p warning`` works (sd-daemon(3)).

Every line passes redaction after its traceback has become text, whoever wrote it.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from mgpu.errors import ConfigError
from mgpu.telemetry.redaction import Redactor

LEVEL_VARIABLE = "MGPU_LOG_LEVEL"

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}

_JOURNAL_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""syslog(3) priorities."""


def configure(
    *,
    secrets: Iterable[str] = (),
    stream: TextIO | None = None,
    environ: Mapping[str, str] | None = None,
) -> None:
    """Send all logging of this process to ``stream`` (None: standard error).

    ``secrets`` are values that must never be written. The level is ``MGPU_LOG_LEVEL`` (default
    info). May be called again, which replaces what was set up before. Raises
    ``errors.ConfigError`` when the level is not one.
    """
    environ = os.environ if environ is None else environ
    stream = sys.stderr if stream is None else stream
    level = level_from(environ)
    to_journal = _is_journal(stream, environ)
    shared = _shared_processors(timestamp=not to_journal)

    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _redact_with(Redactor(secrets)),
                *_renderers(colours=stream.isatty(), to_journal=to_journal),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    _log_uncaught()


def level_from(environ: Mapping[str, str]) -> int:
    """The level that ``MGPU_LOG_LEVEL`` names; raises ``errors.ConfigError`` for a wrong name."""
    name = environ.get(LEVEL_VARIABLE) or "info"
    try:
        return _LEVELS[name.lower()]
    except KeyError:
        known = ", ".join(_LEVELS)
        raise ConfigError(f"{LEVEL_VARIABLE}={name!r} is not one of {known}") from None


def _shared_processors(*, timestamp: bool) -> list[Processor]:
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.StackInfoRenderer(),
    ]
    if timestamp:
        processors.append(structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"))
    return processors


def _redact_with(redactor: Redactor) -> Processor:
    def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return redactor.mapping(event)

    return redact


def _renderers(*, colours: bool, to_journal: bool) -> list[Processor]:
    if colours:
        # Tracebacks are text already: they had to pass redaction.
        return [
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
        ]
    json_line = structlog.processors.JSONRenderer(ensure_ascii=False)
    return [_with_priority(json_line)] if to_journal else [json_line]


def _with_priority(render: structlog.processors.JSONRenderer) -> Processor:
    def prefixed(logger: WrappedLogger, method: str, event: EventDict) -> str:
        priority = _JOURNAL_PRIORITIES.get(event.get("level", ""), _JOURNAL_PRIORITIES["info"])
        line = render(logger, method, event)
        return f"<{priority}>{line if isinstance(line, str) else line.decode()}"

    return prefixed


def _is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    # JOURNAL_STREAM is inherited by children whose standard error goes elsewhere, hence the
    # comparison that systemd.exec(5) asks for.
    device_and_inode = environ.get("JOURNAL_STREAM", "")
    try:
        found = os.fstat(stream.fileno())
    except OSError:
        return False
    return device_and_inode == f"{found.st_dev}:{found.st_ino}"


def _log_uncaught() -> None:
    log = logging.getLogger("mgpu")

    def uncaught(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, traceback)
            return
        log.critical("uncaught exception", exc_info=(kind, error, traceback))

    def uncaught_in_thread(hook: threading.ExceptHookArgs) -> None:
        if hook.exc_value is not None:
            uncaught(hook.exc_type, hook.exc_value, hook.exc_traceback)

    sys.excepthook = uncaught
    threading.excepthook = uncaught_in_thread
