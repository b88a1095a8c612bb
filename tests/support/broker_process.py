"""``mgpu serve`` as a process of its own, as a user runs it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from tests.support.servers import free_port

START_S = 40.0
"""On a machine that others use as well; it is a tenth of that on one with nothing else to do."""
POLL_S = 0.01


class BrokerProcess:
    """A running broker; ``log`` is what it has written so far."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        url: str,
        session: aiohttp.ClientSession,
        log_file: Path,
        config_file: Path,
    ) -> None:
        self.config_file = config_file
        self.process = process
        self.url = url
        self.session = session
        self._log_file = log_file

    @property
    def log(self) -> str:
        return self._log_file.read_text()

    async def status(self) -> dict[str, Any]:
        async with self.session.get(f"{self.url}/api/status") as response:
            document: dict[str, Any] = await response.json()
            return document

    async def consumer(self, name: str) -> dict[str, Any]:
        view: dict[str, Any] = (await self.status())["consumers"][name]
        return view

    async def load(self, consumer: str) -> None:
        await self._act(consumer, "load")

    async def unload(self, consumer: str) -> None:
        await self._act(consumer, "unload")

    async def until(
        self, condition: str, *, within_s: float = 10.0, **names: Any
    ) -> dict[str, Any]:
        """Poll the status until a Python expression over it (``s``) holds; return that status."""
        status: dict[str, Any] = {}
        try:
            async with asyncio.timeout(within_s):
                while True:
                    status = await self.status()
                    if eval(condition, {}, {"s": status, "c": status["consumers"], **names}):
                        return status
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise AssertionError(f"never: {condition}\n{json.dumps(status, indent=1)}") from None

    async def reload(self, change: Callable[[dict[str, Any]], None]) -> str:
        """Change the file, send SIGHUP, and return what the log says of it."""
        document = yaml.safe_load(self.config_file.read_text())
        change(document)
        self.config_file.write_text(yaml.safe_dump(document))
        before = len(self.log)
        self.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(10):
            while "reloaded" not in (said := self.log[before:]) or not said.endswith("\n"):  # noqa: ASYNC110  a file tells nobody
                await asyncio.sleep(POLL_S)
        return said

    async def stop(self, *, within_s: float = 15.0) -> int:
        """SIGTERM, and its exit status."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(within_s):
            return await self.process.wait()

    async def _act(self, consumer: str, action: str) -> None:
        url = f"{self.url}/api/consumers/{consumer}/{action}"
        async with self.session.post(url) as response:
            assert response.status == 200, await response.text()


@asynccontextmanager
async def serving(
    directory: Path,
    config: Mapping[str, Any],
    *,
    env: Mapping[str, str] | None = None,
    ready: bool = True,
    port: int | None = None,
) -> AsyncIterator[BrokerProcess]:
    """Run a broker on this port, or a free one, with this configuration until the body ends."""
    port = port or free_port()
    document = {
        **config,
        "server": {"listen": f"127.0.0.1:{port}", **config.get("server", {})},
        "jobs": {"database": str(directory / "jobs.db"), **config.get("jobs", {})},
    }
    path = directory / "broker.yaml"
    path.write_text(yaml.safe_dump(document))
    log_file = directory / "broker.log"
    with log_file.open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "mgpu",
            "serve",
            "-c",
            str(path),
            env={**os.environ, **(env or {})},
            stdout=log,
            stderr=log,
            stdin=asyncio.subprocess.DEVNULL,
        )
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        broker = BrokerProcess(process, f"http://127.0.0.1:{port}", session, log_file, path)
        try:
            await _until_answers(broker, "/readyz" if ready else "/healthz")
            yield broker
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _until_answers(broker: BrokerProcess, path: str) -> None:
    answer = "nothing"
    try:
        async with asyncio.timeout(START_S):
            while broker.process.returncode is None:
                try:
                    async with broker.session.get(broker.url + path) as response:
                        answer = await response.text()
                        if response.status == 200:
                            return
                except aiohttp.ClientConnectionError:
                    pass
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        pass
    raise AssertionError(f"the broker did not start; {path} said {answer}; its log:\n{broker.log}")
