"""What of a configuration cannot change while the broker runs.

These are the things that are opened or decided once, at the start: addresses, keys, GPUs, files;
what makes a consumer the one it is; and how a program is controlled that the broker runs itself,
since whoever started it has to end it. Everything else is a limit or a rule, and can change.
"""

from __future__ import annotations

from collections.abc import Iterator

from mgpu.config.model import Config
from mgpu.config.problems import KeyPath

TAKES_A_RESTART = "cannot change while the broker runs: restart it"

_FIXED: tuple[KeyPath, ...] = (
    ("server", "listen"),
    ("server", "allowed_hosts"),
    ("server", "allowed_origins"),
    ("server", "api_keys"),
    ("server", "api_keys_file"),
    ("gpu", "backend"),
    ("gpu", "devices"),
    ("gpu", "lock"),
    ("gpu", "sample_interval_s"),
    ("gpu", "simulated"),
    ("jobs", "database"),
    ("jobs", "trace"),
)

_FIXED_OF_A_CONSUMER = (
    "url",
    "gpus",
    "vram_managed",
    "listen",
    "systemd_unit",
    "systemd_scope",
    "container",
    "container_socket",
    "command",
    "cwd",
    "environment",
)

_WAYS = ("load", "unload", "health", "resident", "busy", "headers", "stop_grace_s")
"""How a consumer is controlled."""


def fixed_changes(running: Config, new: Config) -> Iterator[KeyPath]:
    """Give every key that differs and must not; of consumers that come or go, only ``listen``."""
    for section, key in _FIXED:
        before, after = getattr(running, str(section)), getattr(new, str(section))
        if getattr(before, str(key)) != getattr(after, str(key)):
            yield (section, key)
    for name in running.consumers.keys() & new.consumers.keys():
        before, after = running.consumers[name], new.consumers[name]
        for key in (*_FIXED_OF_A_CONSUMER, *(_WAYS if before.command is not None else ())):
            if getattr(before, key) != getattr(after, key):
                yield ("consumers", name, key)
    for one, other in ((running, new), (new, running)):
        for name in one.consumers.keys() - other.consumers.keys():
            if one.consumers[name].listen is not None:
                yield ("consumers", name, "listen")


def controlled_otherwise(running: Config, new: Config) -> frozenset[str]:
    """The consumers that are new, or loaded, unloaded or asked in another way than before."""
    return frozenset(
        name
        for name, consumer in new.consumers.items()
        if name not in running.consumers
        or any(getattr(consumer, w) != getattr(running.consumers[name], w) for w in _WAYS)
    )
