"""Asking a consumer how it is: requests free of side effects, under one short deadline.

A probe never raises for a consumer that is dead, slow or talks nonsense: that is what it is there
to report. ``wait_until`` repeats it for as long as a load may take.
"""

from __future__ import annotations

import asyncio
import json
import operator
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import aiohttp
import jmespath
from jmespath.exceptions import JMESPathError
from prometheus_client.parser import text_string_to_metric_families
from tenacity import AsyncRetrying, retry_if_result, wait_exponential
from yarl import URL

from mgpu.config.model import (
    BusyConfig,
    ConsumerConfig,
    HealthConfig,
    ProbeConfig,
    RequestConfig,
    ResidentConfig,
)
from mgpu.consumers.wire import READ_BYTES, Answer, bare, quote, reason, request
from mgpu.errors import LoadFailed, UnloadFailed
from mgpu.ports import ProbeReport

PROBE_TIMEOUT_S = 2.0
MAX_BODY_BYTES = 1 << 20
POLL_WAIT = wait_exponential(multiplier=0.01, max=0.04)
"""Seconds between two tries, doubling from 0.01 to 0.04: that a load is over is noticed within what
a swap may be prolonged by."""
_CONNECT_TIMEOUT_S = 1.5
"""Less than a probe's deadline, so that a host that is down and one that is slow look different."""
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S)
_SUCCESS = range(200, 300)
_NOBODY = ProbeReport(reachable=False, healthy=False)


async def probe(config: ConsumerConfig, session: aiohttp.ClientSession) -> ProbeReport:
    """Ask the health, the resident and the busy route, within 2 s together; never raises.

    With none configured, a connection that is accepted counts as healthy.
    """
    report = _NOBODY
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            if config.health is not None:
                report = await _ask_health(config, config.health, session)
            if config.resident is not None:
                report = await _ask_resident(config, config.resident, session, report)
            if config.busy is not None:
                report = await _ask_busy(config, config.busy, session, report)
            if config.health is None and config.resident is None and config.busy is None:
                report = await _connect(config.url)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        return replace(_NOBODY, detail=reason(error))
    except TimeoutError:
        return replace(report, reachable=True, detail=f"no answer within {PROBE_TIMEOUT_S:g} s")
    except aiohttp.ClientError as error:
        return replace(report, reachable=True, detail=reason(error))
    except OSError as error:
        return replace(_NOBODY, detail=reason(error))
    return report


async def ask_busy(config: ConsumerConfig, session: aiohttp.ClientSession) -> bool:
    """Whether the consumer says that it computes; False also where it does not say.

    Bounded by 2 s; never raises.
    """
    if config.busy is None:
        return False
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            return (await _ask_busy(config, config.busy, session, _NOBODY)).busy
    except (TimeoutError, aiohttp.ClientError, OSError):
        return False


async def wait_until(
    ready: Callable[[ProbeReport], bool],
    ask: Callable[[], Awaitable[ProbeReport]],
    *,
    deadline: float,
    what: str,
    failure: type[LoadFailed | UnloadFailed] = LoadFailed,
) -> None:
    """Return as soon as a report is ``ready``.

    Raises ``failure`` at loop time ``deadline``, with ``what`` was waited for and what was
    heard last, or at once when ``ask`` itself raises it.
    """
    loop = asyncio.get_running_loop()
    began, last = loop.time(), "it was never asked"

    async def ask_once() -> bool:
        nonlocal last
        report = await ask()
        last = report.detail or "its probe says no"
        return ready(report)

    try:
        async with asyncio.timeout_at(deadline):
            await AsyncRetrying(retry=retry_if_result(operator.not_), wait=POLL_WAIT)(ask_once)
    except TimeoutError:
        raise failure(f"{what} after {loop.time() - began:.1f} s: {last}") from None


async def _ask_health(
    config: ConsumerConfig, health: HealthConfig, session: aiohttp.ClientSession
) -> ProbeReport:
    answer = await fetch(config, health, session)
    problem = ""
    if answer.status not in health.ok:
        problem = f"answered {answer}"
    elif health.when is not None:
        holds = _holds(health.when, answer, health)
        if isinstance(holds, str):
            problem = holds
        elif not holds:
            problem = f"answered {answer}"
    detail = f"{_named(health)}: {problem}" if problem else ""
    return ProbeReport(reachable=True, healthy=not problem, detail=detail)


async def _ask_resident(
    config: ConsumerConfig,
    resident: ResidentConfig,
    session: aiohttp.ClientSession,
    known: ProbeReport,
) -> ProbeReport:
    """Add to what the health route said, or stand for it where there is none."""
    answer = await fetch(config, resident, session)
    fine = answer.status in _SUCCESS
    absent = answer.status in resident.absent
    report = known if known.reachable else ProbeReport(reachable=True, healthy=fine or absent)
    if absent:
        return replace(report, resident=False)
    holds = _holds(resident.when, answer, resident) if fine else f"answered {answer}"
    if isinstance(holds, bool):
        return replace(report, resident=holds)
    return replace(report, detail=report.detail or f"{_named(resident)}: {holds}")


async def _ask_busy(
    config: ConsumerConfig, busy: BusyConfig, session: aiohttp.ClientSession, known: ProbeReport
) -> ProbeReport:
    """Add to what the others said, or stand for them where there are none.

    The route may be on a port of its own, so that it fails while the consumer is well.
    """
    try:
        answer = await fetch(config, busy, session)
    except (aiohttp.ClientError, OSError) as error:
        if not known.reachable:
            raise
        return replace(known, detail=known.detail or f"{_named(busy)}: {reason(error)}")
    fine = answer.status in _SUCCESS
    report = known if known.reachable else ProbeReport(reachable=True, healthy=fine)
    holds = _holds(busy.when, answer, busy) if fine else f"answered {answer}"
    if isinstance(holds, bool):
        return replace(report, busy=holds)
    return replace(report, detail=report.detail or f"{_named(busy)}: {holds}")


async def _connect(url: str) -> ProbeReport:
    address = URL(url)
    _, writer = await asyncio.open_connection(address.host, address.port)
    writer.close()
    return ProbeReport(reachable=True, healthy=True)


async def fetch(
    config: ConsumerConfig, wanted: RequestConfig, session: aiohttp.ClientSession
) -> Answer:
    """The answer to a question, 1 MiB of it at most. The caller bounds the time."""
    async with request(session, config, wanted, _TIMEOUT) as response:
        body = b""
        async for chunk in response.content.iter_chunked(READ_BYTES):
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return Answer(response.status, body, complete=False, headers=response.headers)
        return Answer(response.status, body, complete=True, headers=response.headers)


def evaluate(expression: str, answer: Answer, format: str = "json") -> Any:  # noqa: A002
    """What a JMESPath gives over an answer; raise ``ValueError`` with a sentence why it cannot.

    Of Prometheus metrics an object is made with each sample's name and its sum over all labels.
    """
    if not answer.complete:
        raise ValueError(f"the answer is longer than {MAX_BODY_BYTES} bytes")
    try:
        document = _metrics(answer.body) if format == "prometheus" else json.loads(answer.body)
    except (ValueError, RecursionError):
        what = "Prometheus metrics" if format == "prometheus" else "JSON"
        raise ValueError(f"the answer is not {what}: {quote(answer.body)}") from None
    try:
        return jmespath.search(expression, document)
    except (JMESPathError, RecursionError) as error:
        told = quote(str(error).encode())
        raise ValueError(f"{expression!r} cannot be applied to the answer: {told}") from error


def _holds(expression: str, answer: Answer, wanted: ProbeConfig) -> bool | str:
    """Whether the JMESPath holds over an answer, or a sentence why that cannot be told.

    0 counts as false, unlike in JMESPath's own conditions: ``models[0].size_vram`` is meant to
    read as "has any".
    """
    try:
        return bool(evaluate(expression, answer, wanted.format))
    except ValueError as error:
        return str(error)


def _metrics(body: bytes) -> dict[str, float]:
    sums: dict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            sums[sample.name] += sample.value
    return dict(sums)


def _named(wanted: RequestConfig) -> str:
    return f"{wanted.method} {bare(wanted.path)}"
