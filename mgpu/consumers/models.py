"""Asking a consumer which models it serves: one GET, bounded in time and size."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import jmespath
from jmespath.exceptions import JMESPathError

from mgpu.config.model import ConsumerConfig, RequestConfig
from mgpu.consumers.probe import PROBE_TIMEOUT_S, fetch

MAX_MODELS = 10_000
MAX_NAME_CHARS = 1024
_OK = 200


async def served_models(
    config: ConsumerConfig, session: aiohttp.ClientSession
) -> tuple[str, ...] | None:
    """The names it tells, within 2 s; None when it does not answer, or not with names.

    ``config.models`` says where to ask; without it there is nothing to ask.
    """
    if config.models is None:
        return None
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            answer = await fetch(config, RequestConfig(path=config.models.path), session)
        if answer.status != _OK or not answer.complete:
            return None
        names = jmespath.search(config.models.names, json.loads(answer.body))
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError, RecursionError, JMESPathError):
        return None
    if not isinstance(names, list):
        return None
    told = (name for name in names[:MAX_MODELS] if isinstance(name, str))
    return tuple(dict.fromkeys(name for name in told if 0 < len(name) <= MAX_NAME_CHARS))
