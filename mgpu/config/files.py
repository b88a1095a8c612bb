"""Reading a YAML file of bounded size into a ``Document``, or saying why it cannot be read."""

from __future__ import annotations

from pathlib import Path

from mgpu.config import document
from mgpu.config.document import Document, UnreadableError
from mgpu.config.problems import InvalidConfig, Problem

MAX_FILE_BYTES = 1024 * 1024


def read(path: Path) -> Document:
    """Return what the file says; raise ``InvalidConfig`` with the one thing that is wrong."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        message = f"cannot be read: {error.strerror}; mgpu init writes one, -c names another"
        raise _whole_file(path, message) from error
    except OSError as error:
        raise _whole_file(path, f"cannot be read: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise _whole_file(path, f"is larger than {MAX_FILE_BYTES} bytes")
    try:
        found = document.parse(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _whole_file(path, "is not UTF-8 text", line) from error
    except UnreadableError as error:
        raise _whole_file(path, error.message, error.line) from error
    # "routes:" with everything below commented out
    found.data = {key: value for key, value in found.data.items() if value is not None}
    return found


def _whole_file(path: Path, message: str, line: int | None = None) -> InvalidConfig:
    return InvalidConfig([Problem(str(path), line, "", message)])
