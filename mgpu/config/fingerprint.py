"""What makes a consumer the one that was measured."""

from __future__ import annotations

import hashlib

from mgpu.config.model import Config, ConsumerConfig

_KEYS = ("url", "gpus", "load", "systemd_unit", "systemd_scope", "preset", "container", "command")
"""With another one of these it is another program, or the same with other weights."""


def fingerprints(config: Config) -> dict[str, str]:
    """One for each consumer, which changes when what was measured of it says nothing any more."""
    return {name: _fingerprint(consumer) for name, consumer in config.consumers.items()}


def _fingerprint(consumer: ConsumerConfig) -> str:
    # Headers may hold a secret, and say nothing about what is loaded.
    kept = {"load": {"headers", "timeout_s", "ok"}}
    text = consumer.model_dump_json(include=set(_KEYS), exclude=kept)
    return hashlib.sha256(text.encode()).hexdigest()
