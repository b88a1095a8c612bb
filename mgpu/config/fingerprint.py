"""What makes a consumer the one that was measured, told of its models, or was asked to unload."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from mgpu.config.model import Config, ConsumerConfig

_KEYS = ("url", "gpus", "load", "systemd_unit", "systemd_scope", "preset", "container", "command")
"""With another one of these it is another program, or the same with other weights."""
_OF_MODELS = (*(key for key in _KEYS if key != "gpus"), "models")

_SERVICE_KEYS = ("url", "systemd_unit", "systemd_scope", "container", "container_socket", "command")
"""Whoever is meant by other ones of these is another service, whatever it is to load."""


def fingerprints(config: Config) -> dict[str, str]:
    """One for each consumer, which changes when what was measured of it says nothing any more."""
    return {name: _fingerprint(consumer, _KEYS) for name, consumer in config.consumers.items()}


def fingerprints_of_models(config: Config) -> dict[str, str]:
    """The same of what consumers told of their models, for each that can be asked."""
    return {
        name: _fingerprint(consumer, _OF_MODELS)
        for name, consumer in config.consumers.items()
        if consumer.models is not None
    }


def _fingerprint(consumer: ConsumerConfig, keys: Iterable[str]) -> str:
    # Headers may hold a secret, and say nothing about what is loaded.
    kept = {"load": {"headers", "timeout_s", "ok"}}
    text = consumer.model_dump_json(include=set(keys), exclude=kept)
    return hashlib.sha256(text.encode()).hexdigest()


def service(consumer: ConsumerConfig) -> str:
    """One for the service behind a consumer: where it answers, and what it is started as."""
    text = consumer.model_dump_json(include=set(_SERVICE_KEYS))
    return hashlib.sha256(text.encode()).hexdigest()
