"""Recognising a service by its answers to the harmless questions of the presets.

A port says little: five of the usual ones are shared by several services. An answer says more, but
services imitate each other's routes, so that every question is put and one preset may win over
another (``fingerprint.rather_than``). Where two are left, nobody is chosen.

A broker's ports answer as the services behind it do. They are known by its headers, and no question
becomes a job there.

Only ``GET`` is asked, only of loopback, and never a route that computes, loads or changes anything.
A redirect is an answer, and is not followed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import aiohttp

from mgpu.api import headers
from mgpu.config.model import ConsumerConfig, RequestConfig
from mgpu.config.presets import Fingerprint, Found
from mgpu.consumers.probe import evaluate, fetch
from mgpu.consumers.wire import Answer, is_refused
from mgpu.discovery.listeners import Listener

QUESTION_TIMEOUT_S = 1.0
PORT_TIMEOUT_S = 10.0
"""For all questions to one port: what answers slowly is asked less."""
MAX_SLOW = 3
"""Answers that did not come in time before a port is left alone."""
_OK = 200
_WANTS_A_KEY = (401, 403)
_FIRST = "/"
_NO_JOB = {headers.MAX_WAIT: "none"}
"""No length of time: a broker makes no job of the question, and a service does not care."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Who answers at a port. Several presets: they cannot be told apart; none: nobody known."""

    url: str
    presets: tuple[Found, ...] = ()
    speaks_http: bool = False
    is_broker: bool = False
    """It is a broker, or the port that a broker has for one of its consumers."""
    wants_a_key: bool = False
    """It refused to answer some questions to who has no key."""


def questions(presets: Iterable[Found]) -> Mapping[str, tuple[Found, ...]]:
    """Each path that is to be asked, with the presets that want to know."""
    asked: dict[str, list[Found]] = {_FIRST: []}
    for found in presets:
        if found.preset.fingerprint is not None:
            asked.setdefault(found.preset.fingerprint.path, []).append(found)
    return {path: tuple(wanting) for path, wanting in asked.items()}


async def recognise(
    listener: Listener,
    asked: Mapping[str, Sequence[Found]],
    session: aiohttp.ClientSession,
) -> Verdict:
    """Put the questions one after another, so that a small service is not overrun.

    What does not answer the first one with HTTP within 1 s is asked nothing else.
    """
    url, first = await _reach(listener, session)
    if first is None:
        return Verdict(url)
    if _is_a_brokers(first):
        return Verdict(url, speaks_http=True, is_broker=True)
    answers = {_FIRST: first}
    slow = 0
    try:
        async with asyncio.timeout(PORT_TIMEOUT_S):
            for path in asked.keys() - answers.keys():
                try:
                    answers[path] = await _ask(url, path, session)
                except TimeoutError:
                    slow += 1
                    if slow == MAX_SLOW:
                        break
                except (aiohttp.ClientError, OSError):
                    continue  # another question may fare better
    except TimeoutError:
        pass  # what it has said so far has to do
    matching = [
        found
        for path, answer in answers.items()
        for found in asked.get(path, ())
        if found.preset.fingerprint is not None and shows(found.preset.fingerprint, answer)
    ]
    return Verdict(
        url,
        most_specific(matching),
        speaks_http=True,
        wants_a_key=any(answer.status in _WANTS_A_KEY for answer in answers.values()),
    )


def shows(fingerprint: Fingerprint, answer: Answer) -> bool:
    """Whether an answer is what the fingerprint says."""
    if answer.status != _OK:
        return False
    if fingerprint.contains is not None and fingerprint.contains.encode() not in answer.body:
        return False
    if fingerprint.when is None:
        return True
    try:
        return bool(evaluate(fingerprint.when, answer))
    except ValueError:
        return False


def most_specific(matching: Sequence[Found]) -> tuple[Found, ...]:
    """Those that no other one is meant rather than, by name."""
    beaten = {
        name
        for found in matching
        if found.preset.fingerprint is not None
        for name in found.preset.fingerprint.rather_than
    }
    left = [found for found in matching if found.name not in beaten]
    return tuple(sorted(left, key=lambda found: found.name))


async def _reach(listener: Listener, session: aiohttp.ClientSession) -> tuple[str, Answer | None]:
    """The URL that answers, and its answer to ``GET /``; None: nobody there speaks HTTP."""
    urls = [
        f"http://[{h}]:{listener.port}" if ":" in h else f"http://{h}:{listener.port}"
        for h in listener.hosts
    ]
    for url in urls:
        try:
            return url, await _ask(url, _FIRST, session)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            if not is_refused(error):
                return url, None
    return urls[0], None


async def _ask(url: str, path: str, session: aiohttp.ClientSession) -> Answer:
    async with asyncio.timeout(QUESTION_TIMEOUT_S):
        return await fetch(
            ConsumerConfig(url=url), RequestConfig(path=path, headers=dict(_NO_JOB)), session
        )


def _is_a_brokers(answer: Answer) -> bool:
    return headers.CONSUMER in answer.headers or b'"urn:mgpu:' in answer.body
