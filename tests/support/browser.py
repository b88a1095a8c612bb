"""A page in headless Chromium, told what to do through the DevTools protocol.

Only what a person does: go somewhere, look whether something is there, click, type. What the page
writes to its console, and which of its requests failed, is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH")
START_S = 60.0
POLL_S = 0.05
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
    "--remote-debugging-port=0",
    # Nothing but this machine is asked, whatever a page links to.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


class Page:
    """One tab. ``failed`` holds the URLs that were answered with 4xx, 5xx or not at all."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.console: list[str] = []
        self.failed: list[str] = []
        self.sockets: list[str] = []
        """The WebSockets that it has opened."""
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._urls: dict[str, str] = {}

    async def goto(self, url: str) -> None:
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && document.body !== null")

    async def evaluate(self, expression: str) -> Any:
        """What a JavaScript expression gives, promises awaited."""
        answer = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, expression: str, *, within_s: float = 30.0) -> Any:
        """Return what the expression gives as soon as that is something."""
        try:
            async with asyncio.timeout(within_s):
                while not (value := await self.evaluate(expression)):  # noqa: ASYNC110  nobody tells
                    await asyncio.sleep(POLL_S)
                return value
        except TimeoutError:
            text = await self.evaluate("document.body.innerText")
            told = "\n".join([*self.console, *self.failed])
            raise AssertionError(f"never: {expression}\n{text}\n{told}") from None

    async def type(self, selector: str, text: str) -> None:
        """Put the cursor there and type."""
        found = f"document.querySelector({json.dumps(selector)})"
        await self.until(f"{found} !== null")
        await self.evaluate(f"{found}.focus()")
        await self.call("Input.insertText", text=text)

    async def click(self, name: str) -> None:
        """Click what has just this label or this text, as soon as it is there to be clicked."""
        named = f"(e.ariaLabel || e.innerText || '').trim() === {json.dumps(name)}"
        found = f"[...document.querySelectorAll('*')].findLast(e => {named})"
        await self.until(f"{found}?.closest('[disabled]') === null")
        await self.evaluate(
            f"{found}.dispatchEvent(new MouseEvent('click', {{bubbles: true, cancelable: true}}))"
        )

    async def press_enter(self) -> None:
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        await self.call("Input.dispatchKeyEvent", type="keyDown", **key)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **key)

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask the protocol for something; return its result."""
        number = next(self._numbers)
        future = asyncio.get_running_loop().create_future()
        self._answers[number] = future
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        async with asyncio.timeout(30):
            answer = await future
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    async def listen(self) -> None:
        """Take in what the browser says, for ever."""
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said)
            else:
                self._hear(said["method"], said["params"])

    def _hear(self, event: str, told: dict[str, Any]) -> None:
        match event:
            case "Runtime.consoleAPICalled":
                words = [str(each.get("value", each.get("description"))) for each in told["args"]]
                self.console.append(f"{told['type']}: {' '.join(words)}")
            case "Runtime.exceptionThrown":
                self.console.append(f"exception: {told['exceptionDetails']}")
            case "Network.requestWillBeSent":
                self._urls[told["requestId"]] = told["request"]["url"]
            case "Network.responseReceived" if told["response"]["status"] >= 400:
                self.failed.append(f"{told['response']['status']} {told['response']['url']}")
            case "Network.loadingFailed" if not told.get("canceled"):
                self.failed.append(f"{told['errorText']} {self._urls.get(told['requestId'])}")
            case "Network.webSocketCreated":
                self.sockets.append(told["url"])


@asynccontextmanager
async def page(directory: Path) -> AsyncIterator[Page]:
    """A new browser with one empty tab; its profile is below ``directory``."""
    assert CHROMIUM is not None
    profile = directory / "chromium"
    with (directory / "chromium.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", "about:blank", stdout=log, stderr=log
        )
    try:
        port = await asyncio.to_thread(_port_in, profile / "DevToolsActivePort")
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as response:
                tabs = await response.json()
            (url,) = [tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"]
            async with session.ws_connect(url, max_msg_size=0) as socket:
                tab = Page(socket)
                listening = asyncio.create_task(tab.listen())
                for domain in ("Page", "Runtime", "Network"):
                    await tab.call(f"{domain}.enable")
                yield tab
                listening.cancel()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _port_in(file: Path) -> int:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if file.exists() and (lines := file.read_text().split()):
            return int(lines[0])
        time.sleep(POLL_S)
    raise AssertionError("Chromium did not start")
