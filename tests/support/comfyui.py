"""ComfyUI as a broker sees it: queue, history, interrupt, /free, /view, /ws; and the real one.

The stand-in answers as ComfyUI 0.3.64 does, and to /api/jobs/ID/cancel as newer ones do;
``tests/services`` asks both the same. It knows five nodes: EmptyImage, ImageBlur (which takes
``step_s``), SaveImage, PreviewImage and PreviewAny.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import struct
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from tests.support.real_program import real_program
from tests.support.servers import free_port
from tests.support.standin_consumer import Gate

Graph = dict[str, Any]
MAX_SIDE = 16384
TOO_BIG_BYTES = 1 << 40
OUTPUTS = frozenset({"SaveImage", "PreviewImage", "PreviewAny"})
NODES = frozenset({"EmptyImage", "ImageBlur"}) | OUTPUTS


def picture(
    width: int = 8, height: int = 8, *, color: int = 0xFF0000, save: str = "SaveImage"
) -> Graph:
    """A workflow without weights: one image of one colour."""
    keep: dict[str, Any] = {"source" if save == "PreviewAny" else "images": ["5", 0]}
    if save == "SaveImage":
        keep["filename_prefix"] = "mgpu"
    return {
        "5": {
            "class_type": "EmptyImage",
            "inputs": {"width": width, "height": height, "batch_size": 1, "color": color},
        },
        "9": {"class_type": save, "inputs": keep},
    }


def slow_picture(steps: int, *, side: int = 64, color: int = 0xFF0000) -> Graph:
    """A workflow of many short steps, between which it can be interrupted."""
    graph = picture(side, side, color=color)
    before = "5"
    for number in range(steps):
        name = str(100 + number)
        blur = {"image": [before, 0], "blur_radius": 31, "sigma": 1.0}
        graph[name] = {"class_type": "ImageBlur", "inputs": blur}
        before = name
    graph["9"]["inputs"]["images"] = [before, 0]
    return graph


def broken_picture() -> Graph:
    """A workflow that is accepted and fails when it runs: no machine has 4 TiB for an image."""
    graph = picture(MAX_SIDE, MAX_SIDE)
    graph["5"]["inputs"]["batch_size"] = 4096
    return graph


class StandinComfyUI:
    """One ComfyUI. A test may close ``gate`` to hold it up before a node."""

    def __init__(self, *, step_s: float = 0.02) -> None:
        self.step_s = step_s
        self.minds_prompt_id = True
        """When it is interrupted; before 0.3.57 it did not."""
        self.gate = Gate()
        self.url = ""
        self.prompts: list[dict[str, Any]] = []
        self.interrupts = 0
        self.freed: list[tuple[dict[str, Any], bool]] = []
        """What /free asked for, and whether a prompt was running when it acted."""
        self.pending: list[list[Any]] = []
        self.running: list[list[Any]] = []
        self.history: dict[str, Any] = {}
        self._files: dict[tuple[str, str], bytes] = {}
        self._userdata: dict[str, bytes] = {}
        self._flags: dict[str, Any] = {}
        self._interrupted = False
        self._numbers = itertools.count()
        self._file_numbers = itertools.count(1)
        self._woken = asyncio.Event()
        self._sockets: dict[str, web.WebSocketResponse] = {}
        self._runner: web.AppRunner | None = None
        self._worker: asyncio.Task[None] | None = None

    async def start(self, port: int = 0) -> None:
        app = web.Application()
        for prefix in ("", "/api"):
            app.router.add_get(f"{prefix}/prompt", self._get_prompt)
            app.router.add_post(f"{prefix}/prompt", self._post_prompt)
            app.router.add_get(f"{prefix}/queue", self._get_queue)
            app.router.add_post(f"{prefix}/queue", self._post_queue)
            app.router.add_post(f"{prefix}/interrupt", self._post_interrupt)
            app.router.add_post(f"{prefix}/free", self._post_free)
            app.router.add_get(f"{prefix}/history/{{id}}", self._get_history)
            app.router.add_post(f"{prefix}/history", self._post_history)
            app.router.add_get(f"{prefix}/view", self._view)
            app.router.add_post(f"{prefix}/userdata/{{file}}", self._post_userdata)
            app.router.add_delete(f"{prefix}/userdata/{{file}}", self._delete_userdata)
            app.router.add_get(f"{prefix}/system_stats", self._system_stats)
            app.router.add_get("/ws" if not prefix else "/api/ws", self._ws)
        app.router.add_patch("/internal/logs/subscribe", self._subscribe_logs)
        app.router.add_post("/api/jobs/{id}/cancel", self._cancel)
        app.router.add_get("/", self._page)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        self._worker = asyncio.create_task(self._work())

    async def close(self) -> None:
        """End as a killed process does."""
        self.gate.open()
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        if self._runner is not None:
            server = self._runner.server
            for connection in list(server.connections) if server is not None else []:
                if connection.transport is not None:
                    connection.transport.abort()
            await self._runner.cleanup()

    # Requests

    async def _post_prompt(self, request: web.Request) -> web.Response:
        document = json.loads(await request.read())
        self.prompts.append(document)
        number = next(self._numbers)
        if "prompt" not in document:
            text = "No prompt provided"
            return _refused("no_prompt", text, text)
        graph = document["prompt"]
        for name, node in graph.items():
            if node.get("class_type") not in NODES:
                message = f"Cannot execute because node {node['class_type']} does not exist."
                return _refused("invalid_prompt", message, f"Node ID '#{name}'")
        outputs = [name for name, node in graph.items() if node["class_type"] in OUTPUTS]
        if not outputs:
            return _refused("prompt_no_outputs", "Prompt has no outputs", "")
        if errors := _node_errors(graph, outputs):
            kind, message = "prompt_outputs_failed_validation", "Prompt outputs failed validation"
            return _refused(kind, message, "", errors)
        work = str(document.get("prompt_id", uuid.uuid4()))
        extra = {"client_id": document["client_id"]} if "client_id" in document else {}
        self.pending.append([number, work, graph, extra, outputs])
        self._woken.set()
        await self._broadcast_status()
        return web.json_response({"prompt_id": work, "number": number, "node_errors": {}})

    async def _get_prompt(self, _request: web.Request) -> web.Response:
        return web.json_response(self._queue_info())

    async def _get_queue(self, _request: web.Request) -> web.Response:
        return web.json_response({"queue_running": self.running, "queue_pending": self.pending})

    async def _post_queue(self, request: web.Request) -> web.Response:
        document = json.loads(await request.read())
        if document.get("clear"):
            self.pending.clear()
        unwanted = document.get("delete", [])
        self.pending = [entry for entry in self.pending if entry[1] not in unwanted]
        return web.Response()

    async def _post_interrupt(self, request: web.Request) -> web.Response:
        body = await request.read()
        work = json.loads(body).get("prompt_id") if body and self.minds_prompt_id else None
        if work is None or any(entry[1] == work for entry in self.running):
            self.interrupts += 1
            self._interrupted = True
        return web.Response()

    async def _post_free(self, request: web.Request) -> web.Response:
        self._flags = json.loads(await request.read())
        self._woken.set()
        return web.Response()

    async def _get_history(self, request: web.Request) -> web.Response:
        work = request.match_info["id"]
        entry = self.history.get(work)
        return web.json_response({} if entry is None else {work: entry})

    async def _post_history(self, request: web.Request) -> web.Response:
        for work in json.loads(await request.read()).get("delete", []):
            self.history.pop(work, None)
        return web.Response()

    async def _view(self, request: web.Request) -> web.Response:
        name, kind = request.query["filename"], request.query.get("type", "output")
        content = self._files.get((kind, name))
        if content is None:
            return web.Response(status=404)
        disposition = {"Content-Disposition": f'filename="{name}"'}
        return web.Response(body=content, content_type="image/png", headers=disposition)

    async def _cancel(self, request: web.Request) -> web.Response:
        work = request.match_info["id"]
        waits = [entry for entry in self.pending if entry[1] == work]
        runs = any(entry[1] == work for entry in self.running)
        self.pending = [entry for entry in self.pending if entry[1] != work]
        if runs:
            self.interrupts += 1
            self._interrupted = True
        return web.json_response({"cancelled": runs or bool(waits)})

    async def _post_userdata(self, request: web.Request) -> web.Response:
        name = request.match_info["file"]
        self._userdata[name] = await request.read()
        return web.json_response(name)

    async def _delete_userdata(self, request: web.Request) -> web.Response:
        known = self._userdata.pop(request.match_info["file"], None) is not None
        return web.Response(status=204 if known else 404)

    async def _subscribe_logs(self, request: web.Request) -> web.Response:
        document = json.loads(await request.read())
        return web.Response(status=200 if {"clientId", "enabled"} <= set(document) else 400)

    async def _system_stats(self, _request: web.Request) -> web.Response:
        return web.json_response({"system": {"comfyui_version": "stand-in"}, "devices": []})

    async def _page(self, _request: web.Request) -> web.Response:
        return web.Response(text="<title>ComfyUI</title>", content_type="text/html")

    async def _ws(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        sid = request.query.get("clientId") or uuid.uuid4().hex
        self._sockets[sid] = socket
        await socket.send_json(
            {"type": "status", "data": {"status": self._queue_info(), "sid": sid}}
        )
        async for _ in socket:
            pass
        self._sockets.pop(sid, None)
        return socket

    # The worker

    async def _work(self) -> None:
        while True:
            if self.pending:
                await self._run(self.pending.pop(0))
            flags, self._flags = self._flags, {}
            if flags:
                self.freed.append((flags, bool(self.running)))
            if not self.pending and not self._flags:
                self._woken.clear()
                await self._woken.wait()

    async def _run(self, entry: list[Any]) -> None:
        _, work, graph, extra, _ = entry
        self.running = [entry]
        self._interrupted = False
        await self._broadcast_status()
        client = extra.get("client_id")
        messages: list[list[Any]] = []

        async def say(kind: str, **data: Any) -> None:
            timestamp = int(time.time() * 1000)
            messages.append([kind, {"prompt_id": work, **data, "timestamp": timestamp}])
            await self._send(client, kind, {"prompt_id": work, **data})

        await say("execution_start")
        await say("execution_cached", nodes=[])
        outputs: dict[str, Any] = {}
        success = True
        for name in _order(graph):
            kind = graph[name]["class_type"]
            await self.gate.passes()
            if kind == "ImageBlur":
                await asyncio.sleep(self.step_s)
            about = {"node_id": name, "node_type": kind, "executed": []}
            if self._interrupted:
                await say("execution_interrupted", **about)
                success = False
                break
            await self._send(client, "executing", {"node": name, "prompt_id": work})
            if problem := _failure(graph[name]):
                await say("execution_error", **about, **problem)
                success = False
                break
            if kind in OUTPUTS:
                outputs[name] = self._save(graph, name)
                about = {"node": name, "output": outputs[name], "prompt_id": work}
                await self._send(client, "executed", about)
        if success:
            await say("execution_success")
        status = "success" if success else "error"
        self.history[work] = {
            "prompt": entry,
            "outputs": outputs,
            "status": {"status_str": status, "completed": success, "messages": messages},
            "meta": {},
        }
        self.running = []
        await self._broadcast_status()
        await self._send(client, "executing", {"node": None, "prompt_id": work})

    def _save(self, graph: Graph, name: str) -> dict[str, Any]:
        node = graph[name]
        if node["class_type"] == "PreviewAny":
            return {"text": ["something"]}
        kind = "temp" if node["class_type"] == "PreviewImage" else "output"
        source = graph[node["inputs"]["images"][0]]
        while source["class_type"] != "EmptyImage":
            source = graph[source["inputs"]["image"][0]]
        inputs = source["inputs"]
        images = []
        for _ in range(inputs["batch_size"]):
            prefix = node["inputs"].get("filename_prefix", "ComfyUI_temp")
            filename = f"{prefix}_{next(self._file_numbers):05}_.png"
            content = png(inputs["width"], inputs["height"], inputs["color"])
            self._files[kind, filename] = content
            images.append({"filename": filename, "subfolder": "", "type": kind})
        return {"images": images}

    def _queue_info(self) -> dict[str, Any]:
        return {"exec_info": {"queue_remaining": len(self.pending) + len(self.running)}}

    async def _broadcast_status(self) -> None:
        for client in list(self._sockets):
            await self._send(client, "status", {"status": self._queue_info()})

    async def _send(self, client: str | None, kind: str, data: dict[str, Any]) -> None:
        socket = self._sockets.get(client or "")
        if socket is not None and not socket.closed:
            await socket.send_json({"type": kind, "data": data})


def _refused(
    kind: str, message: str, details: str, node_errors: dict[str, Any] | None = None
) -> web.Response:
    error = {"type": kind, "message": message, "details": details, "extra_info": {}}
    return web.json_response({"error": error, "node_errors": node_errors or {}}, status=400)


def _node_errors(graph: Graph, outputs: list[str]) -> dict[str, Any]:
    errors = {}
    for name, node in graph.items():
        for key in ("width", "height"):
            value = node["inputs"].get(key)
            if value is not None and value > MAX_SIDE:
                error = {
                    "type": "value_bigger_than_max",
                    "message": f"Value {value} bigger than max of {MAX_SIDE}",
                    "details": key,
                    "extra_info": {"input_name": key, "received_value": value},
                }
                found = {"errors": [error], "dependent_outputs": outputs}
                errors[name] = {**found, "class_type": node["class_type"]}
    return errors


def _order(graph: Graph) -> list[str]:
    """The nodes, each after those that it is connected to."""
    ordered: list[str] = []

    def add(name: str) -> None:
        for value in graph[name]["inputs"].values():
            if isinstance(value, list):
                add(value[0])
        if name not in ordered:
            ordered.append(name)

    for name in graph:
        add(name)
    return ordered


def _failure(node: Graph) -> dict[str, Any]:
    inputs = node["inputs"]
    if node["class_type"] != "EmptyImage":
        return {}
    if inputs["width"] * inputs["height"] * inputs["batch_size"] < TOO_BIG_BYTES:
        return {}
    return {
        "exception_message": "DefaultCPUAllocator: can't allocate memory",
        "exception_type": "RuntimeError",
        "traceback": ["..."],
        "current_inputs": {},
        "current_outputs": [],
    }


def png(width: int, height: int, color: int) -> bytes:
    """An image of one colour."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(body, zlib.crc32(kind))
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    row = b"\0" + (color & 0xFFFFFF).to_bytes(3, "big") * width
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(row * height)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@contextmanager
def real_comfyui(folder: Path, python: str, data: Path) -> Iterator[str]:
    """The URL of a real ComfyUI on the CPU, whose files are all below ``data``."""
    port = free_port()
    command = [python, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port)]
    command += ["--disable-all-custom-nodes", "--database-url", f"sqlite:///{data}/comfyui.db"]
    for name in ("output", "temp", "user", "input"):
        (data / name).mkdir()
        command += [f"--{name}-directory", str(data / name)]
    url = f"http://127.0.0.1:{port}"
    with real_program(command, up=f"{url}/system_stats", log=data / "log", cwd=folder):
        yield url


def completion() -> dict[str, Any]:
    """What broker.yaml says of ComfyUI's jobs, as documented, but asking more often."""
    document = (Path(__file__).parents[2] / "docs" / "completions.md").read_text()
    example = document.partition("```yaml\n")[2].partition("```")[0]
    found: dict[str, Any] = yaml.safe_load(example)["consumers"]["comfyui"]["completion"]
    return {**found, "poll": {**found["poll"], "interval_s": 0.05}}
