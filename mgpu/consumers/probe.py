"""Asking a consumer how it is: two GETs, free of side effects, under one short deadline.

A probe never raises for a consumer that is dead, slow or talks nonsense: that is what it is there
to report. ``wait_until`` repeats it for as long as a load may take.
"""

from __future__ import annotations

import asyncio
import json
import operator
from collections.abc import Awaitable, Callable
from dataclasses import replace

import aiohttp
import jmespath
from jmespath.exceptions import JMESPathError
from tenacity import AsyncRetrying, retry_if_result, wait_exponential
from yarl import URL

from mgpu.config.model import ConsumerConfig, HealthConfig, ResidentConfig
from mgpu.consumers.wire import READ_BYTES, Answer, bare, quote, reason
from mgpu.errors import LoadFailed
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
    """Ask the health and the resident route, within 2 s together; never raises.

    With neither configured, a connection that is accepted counts as healthy.
    """
    report = _NOBODY
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            if config.health is not None:
                report = await _ask_health(config.url, config.health, session)
            if config.resident is not None:
                report = await _ask_resident(config.url, config.resident, session, report)
            if config.health is None and config.resident is None:
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


async def wait_until(
    ready: Callable[[ProbeReport], bool],
    ask: Callable[[], Awaitable[ProbeReport]],
    *,
    deadline: float,
    what: str,
) -> None:
    """Return as soon as a report is ``ready``.

    Raises ``LoadFailed`` at loop time ``deadline``, with ``what`` was waited for and what was
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
        raise LoadFailed(f"{what} after {loop.time() - began:.1f} s: {last}") from None


async def _ask_health(
    url: str, health: HealthConfig, session: aiohttp.ClientSession
) -> ProbeReport:
    answer = await get(url, health.path, session)
    problem = ""
    if answer.status not in health.ok:
        problem = f"answered {answer}"
    elif health.when is not None:
        holds = _evaluate(health.when, answer)
        if isinstance(holds, str):
            problem = holds
        elif not holds:
            problem = f"answered {answer}"
    detail = f"GET {bare(health.path)}: {problem}" if problem else ""
    return ProbeReport(reachable=True, healthy=not problem, detail=detail)


async def _ask_resident(
    url: str, resident: ResidentConfig, session: aiohttp.ClientSession, known: ProbeReport
) -> ProbeReport:
    """Add to what the health route said, or stand for it where there is none."""
    answer = await get(url, resident.path, session)
    fine = answer.status in _SUCCESS
    report = known if known.reachable else ProbeReport(reachable=True, healthy=fine)
    holds = _evaluate(resident.when, answer) if fine else f"answered {answer}"
    if isinstance(holds, bool):
        return replace(report, resident=holds)
    return replace(report, detail=report.detail or f"GET {bare(resident.path)}: {holds}")


async def _connect(url: str) -> ProbeReport:
    address = URL(url)
    _, writer = await asyncio.open_connection(address.host, address.port)
    writer.close()
    return ProbeReport(reachable=True, healthy=True)


async def get(url: str, path: str, session: aiohttp.ClientSession) -> Answer:
    """Ask for what is at ``path``, the first MiB of it; raises what aiohttp raises."""
    async with session.get(
        URL(url + path),
        headers={"Accept-Encoding": "identity"},
        allow_redirects=False,
        timeout=_TIMEOUT,
    ) as response:
        body = b""
        async for chunk in response.content.iter_chunked(READ_BYTES):
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return Answer(response.status, body, complete=False)
        return Answer(response.status, body, complete=True)


def _evaluate(expression: str, answer: Answer) -> bool | str:
    """Whether the JMESPath holds over a JSON answer, or a sentence why that cannot be told.

    0 counts as false, unlike in JMESPath's own conditions: ``models[0].size_vram`` is meant to
    read as "has any".
    """
    if not answer.complete:
        return f"the answer is longer than {MAX_BODY_BYTES} bytes"
    try:
        return bool(jmespath.search(expression, json.loads(answer.body)))
    except (ValueError, RecursionError):
        return f"the answer is not JSON: {quote(answer.body)}"
    except JMESPathError as error:
        return f"{expression!r} cannot be applied to the answer: {quote(str(error).encode())}"
