"""The secrets of a configuration: API keys, and what programs are given in their environment.

API keys are in the file ``server.api_keys_file`` and in the configuration itself. The file holds
one key a line; ``#`` starts a comment, empty lines are skipped.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from mgpu.config import api_key
from mgpu.config.model import Config, ConsumerConfig
from mgpu.errors import ConfigError

MAX_FILE_BYTES = 64 * 1024
_MIN_SECRET_CHARS = 8
"""Of a variable: shorter values are settings (``TOKENIZERS_PARALLELISM=0``), and looking for them
would blot out half of a log."""
_NAMES_A_SECRET = re.compile("key|token|secret|passw", re.IGNORECASE)


class KeysFileError(ConfigError):
    """The keys file cannot be used. The message quotes nothing: a key may stand for the path."""


def api_keys(config: Config) -> tuple[str, ...]:
    """Return every key, each once; raise ``KeysFileError`` when the file cannot be used."""
    inline = [key.get_secret_value() for key in config.server.api_keys]
    file = config.server.api_keys_file
    return tuple(dict.fromkeys([*inline, *(read_file(file) if file else ())]))


def secrets_of_environment(consumer: ConsumerConfig) -> list[str]:
    """Values that ``environment`` gives to a program under a name that tells of a secret."""
    return [
        value
        for name, value in consumer.environment.items()
        if _NAMES_A_SECRET.search(name) and len(value) >= _MIN_SECRET_CHARS
    ]


def read_file(path: Path) -> tuple[str, ...]:
    """Return the keys in ``path``; raise ``KeysFileError``, for one that others may read too."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(MAX_FILE_BYTES + 1)
        text = content.decode()
    except UnicodeDecodeError as error:
        raise KeysFileError("is not UTF-8 text") from error
    except OSError as error:
        raise KeysFileError(f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise KeysFileError("is not a path") from error
    if os.name == "posix" and mode & stat.S_IRWXO:
        raise KeysFileError("is open to every user of this machine: run chmod o= on it")
    if len(content) > MAX_FILE_BYTES:
        raise KeysFileError(f"is larger than {MAX_FILE_BYTES} bytes")
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    keys = tuple(line for line in lines if line)
    if not keys:
        raise KeysFileError("holds no key")
    for number, line in enumerate(lines, start=1):
        if line and not api_key.can_be_sent(line):
            raise KeysFileError(f"is wrong on line {number}: {api_key.WHAT_A_KEY_IS}")
    return keys
