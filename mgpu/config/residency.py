"""What tells one load of a consumer from another: its residency key.

It is what the load request says: method, path, port and body, as one line of JSON. That is all that
can change it while the broker runs: a preset's parameters have been filled into the request, and
another unit, container or command takes a restart. Headers are left out, as they may hold a secret
and say who asks, not what is to be loaded.

Load options change the body: they are merged over the configured one as a JSON merge patch (RFC
7396), so that an object is merged key by key, anything else is replaced, and ``null`` takes a key
away. The key holds what comes of it, so that options which say what is configured anyway are no
others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mgpu.config.model import ConsumerConfig

MOST_DEPTH = 50
"""Objects and lists in each other: far more than services use, far less than Python can follow."""


def load_key(consumer: ConsumerConfig, options: Mapping[str, Any] | None = None) -> str:
    """The key of a load as it is configured, or with these options; empty without a load request.

    Raises ``ValueError`` where options cannot be given, hold what JSON has no word for, or are
    nested too deeply to be dealt with.
    """
    call = consumer.load
    if options is not None and (reason := _why_not(consumer)):
        raise ValueError(reason)
    if _is_deep(options):
        raise ValueError(f"they are nested more than {MOST_DEPTH} deep")
    if call is None:
        return ""
    body = call.body if options is None else _merged(call.body, options)
    said = {"body": body, "method": call.method, "path": call.path, "port": call.port}
    return json.dumps(said, sort_keys=True, allow_nan=False)


def load_body(key: str) -> Any:
    """The body of the load request that a key stands for."""
    return json.loads(key)["body"]


def _why_not(consumer: ConsumerConfig) -> str:
    """Why a consumer cannot be given load options; empty when it can."""
    if consumer.vram_managed:
        return "it loads by itself (vram_managed)"
    if consumer.load is None:
        return "it has no load request to send them with"
    if consumer.unload is None and not consumer.is_supervised:
        return "it cannot be unloaded, so it could not be loaded anew"
    if consumer.load.method in {"GET", "HEAD"}:
        return f"its load request is a {consumer.load.method}, which has no body"
    if not isinstance(consumer.load.body, dict | None):
        return "its load.body is no object that they could be merged over"
    return ""


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MOST_DEPTH + 1):
        inner = [each for each in level if isinstance(each, dict | list | tuple)]
        level = [
            item for each in inner for item in (each.values() if isinstance(each, dict) else each)
        ]
    return bool(level)


def _merged(body: Any, options: Any) -> Any:
    if not isinstance(options, Mapping):
        return options
    merged = dict(body) if isinstance(body, Mapping) else {}
    for name, value in options.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merged(merged.get(name), value)
    return merged
