"""Work that goes on at a consumer after it has answered the request for it.

What was declared in ``completion`` is asked here: whether the work is over, what came of it, and
that it be dropped. A few failed polls in a row are a consumer that is busy or restarts; more of
them are one that has died. How long the work may take is not decided here: whoever waits has a
deadline and is cancelled.

Where a consumer says nothing of work that is not over, ``listed`` tells work that waits from work
that somebody has dropped. The list is read before the last poll, so that work which ends between
the two is not taken for dropped.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import jmespath
import structlog
from jmespath.exceptions import JMESPathError
from yarl import URL

from mgpu.config import template
from mgpu.config.model import CompletionConfig
from mgpu.consumers.wire import READ_BYTES, bare, quote, reason
from mgpu.errors import ConsumerFailed

MAX_ANSWER_BYTES = 16 << 20
POLL_TIMEOUT_S = 10.0
"""Less than this is no sign of death: Python services hardly answer while they compute."""
MAX_FAILURES = 5
"""Polls that fail in a row before the consumer counts as dead."""
LISTED_EVERY_S = 1.0
"""The list may be long: ComfyUI's holds every waiting workflow whole."""
CANCEL_EVERY_S = 1.0
"""Until the work has stopped: ComfyUI forgets an interrupt that comes just before it begins."""

_NOT_FOUND = 404
_SUCCESS = range(200, 300)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Ending:
    """How one piece of work ended. ``answer`` is the consumer's last word, as it sent it."""

    work: str
    answer: bytes = b""
    failed: bool = False
    dropped: bool = False
    """It is gone from the list, and nothing came of it."""
    error: Any = None
    """What the consumer says is wrong, in its own words; None where it says nothing."""
    files: tuple[str, ...] | None = None
    """The path of each result, encoded; None where the last word is the result."""
    listing: tuple[Mapping[str, Any], ...] = ()
    """What the consumer says of each file, where it lists them."""


class _PollError(Exception):
    """One request brought nothing that can be gone on with."""


class Completion:
    """The declared completion of one consumer; the session is the caller's to close.

    ``headers`` are the consumer's, for every request.
    """

    def __init__(
        self,
        name: str,
        url: str,
        config: CompletionConfig,
        session: aiohttp.ClientSession,
        *,
        headers: Mapping[str, str],
    ) -> None:
        self._name = name
        self._url = url
        self._config = config
        self._session = session
        self._headers = headers

    def work_in(self, answer: bytes) -> str | None:
        """The id of the work that an answer announces; None where it announces none."""
        try:
            found = jmespath.search(self._config.id, json.loads(answer))
        except (ValueError, RecursionError, JMESPathError):
            return None
        if isinstance(found, bool) or not isinstance(found, str | int) or found == "":
            return None
        try:
            template.fill_path(self._config.poll.path, {"id": found})
        except template.UnfitValueError:
            return None
        return str(found)

    async def ended(self, work: str, unwanted: asyncio.Event) -> Ending:
        """Wait until the work is over; once it is ``unwanted``, ask for it to be dropped.

        Raises ``ConsumerFailed`` when the consumer does not answer any more.
        """
        loop = asyncio.get_running_loop()
        failures, listed_at, cancelled_at = 0, loop.time(), -CANCEL_EVERY_S
        while True:
            now = loop.time()
            try:
                if unwanted.is_set() and now - cancelled_at >= CANCEL_EVERY_S:
                    cancelled_at = now
                    await self._cancel(work)
                ending = await self._poll(work)
                if ending is None and (unwanted.is_set() or now - listed_at >= LISTED_EVERY_S):
                    listed_at = now
                    ending = await self._dropped(work)
                failures = 0
            except _PollError as error:
                failures += 1
                if failures >= MAX_FAILURES:
                    raise ConsumerFailed(f"{self._name} fell silent at work: {error}.") from error
                ending = None
            if ending is not None:
                return ending
            await self._pause(unwanted)

    async def _pause(self, unwanted: asyncio.Event) -> None:
        if unwanted.is_set():
            await asyncio.sleep(self._config.poll.interval_s)
            return
        try:
            async with asyncio.timeout(self._config.poll.interval_s):
                await unwanted.wait()
        except TimeoutError:
            return

    async def _poll(self, work: str) -> Ending | None:
        poll = self._config.poll
        path = template.fill_path(poll.path, {"id": work})
        status, body = await self._request("GET", path)
        if status == _NOT_FOUND:
            return None  # not known yet, or not any more
        document = self._document(path, status, body)
        if not self._search(poll.until, document, path):
            return None
        if poll.failed is not None and self._search(poll.failed, document, path):
            error = None
            if poll.error is not None:
                error = self._search(poll.error, document, path)
            return Ending(work, body, failed=True, error=error)
        return self._result(work, body, document, path)

    def _result(self, work: str, body: bytes, document: Any, path: str) -> Ending:
        results = self._config.results
        if results is None:
            return Ending(work, body)
        listing: list[Mapping[str, Any]] = [{}]
        if results.files is not None:
            found = self._search(results.files, document, path)
            found = found if isinstance(found, list) else []
            listing = [file for file in found if isinstance(file, dict)]
        try:
            files = tuple(
                template.fill_path(results.path, {**file, "id": work}) for file in listing
            )
        except template.UnfitValueError as error:
            raise ConsumerFailed(f"{self._name} named a result that cannot be: {error}.") from error
        return Ending(work, body, files=files, listing=tuple(listing))

    async def _dropped(self, work: str) -> Ending | None:
        """How work that is not listed any more has ended; None while it is, or nobody can tell."""
        listed = self._config.listed
        if listed is None:
            return None
        status, body = await self._request("GET", listed.path)
        if len(body) > MAX_ANSWER_BYTES:
            return None
        ids = self._search(listed.ids, self._document(listed.path, status, body), listed.path)
        if not isinstance(ids, list):
            raise _PollError(f"GET {bare(listed.path)} gave no list")
        if work in {str(each) for each in ids}:
            return None
        return await self._poll(work) or Ending(work, failed=True, dropped=True)

    async def _cancel(self, work: str) -> None:
        for number, call in enumerate(self._config.cancel):
            if number and await self._dropped(work) is not None:
                return  # older ComfyUIs interrupt whatever runs, whichever prompt is named
            path = template.fill_path(call.path, {"id": work})
            body = template.fill_body(call.body, {"id": work})
            status, answer = await self._request(call.method, path, body)
            if status not in _SUCCESS:
                log.warning(
                    "cancel was refused",
                    consumer=self._name,
                    request=f"{call.method} {bare(call.path)}",
                    answer=f"{status} {quote(answer)}",
                )

    async def _request(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Raise ``_PollError`` when there is no answer; a longer one than may be is cut."""
        headers = {"Accept-Encoding": "identity", **self._headers}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        url = URL(self._url + path, encoded=True)
        try:
            async with (
                asyncio.timeout(POLL_TIMEOUT_S),
                self._session.request(
                    method, url, data=data, headers=headers, allow_redirects=False
                ) as response,
            ):
                received = bytearray()
                async for chunk in response.content.iter_chunked(READ_BYTES):
                    received += chunk
                    if len(received) > MAX_ANSWER_BYTES:
                        break
                return response.status, bytes(received)
        except TimeoutError:
            raise _PollError(f"{method} {bare(path)}: no answer in time") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _PollError(f"{method} {bare(path)}: {reason(error)}") from error

    def _document(self, path: str, status: int, body: bytes) -> Any:
        if status not in _SUCCESS:
            raise _PollError(f"GET {bare(path)} answered {status} {quote(body)}".rstrip())
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise _PollError(f"GET {bare(path)} answered what is no JSON") from error

    @staticmethod
    def _search(expression: str, document: Any, path: str) -> Any:
        try:
            return jmespath.search(expression, document)
        except JMESPathError as error:
            raise _PollError(f"GET {bare(path)}: {quote(str(error).encode())}") from error
