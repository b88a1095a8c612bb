"""A service that holds real memory on a GPU with PyTorch, as an inference server does.

It runs under a Python that has PyTorch, which need not be the broker's, and needs nothing else:
``python service.py PORT WEIGHTS_MIB``. Loading fills the weights, so that no driver can be lazy
about them; a job multiplies them by themselves and needs some memory of its own, as activations
do. Out of memory is answered with 507: in these tests that is the broker's mistake.
"""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

MIB = 1 << 20
BLOCK_MIB = 256
JOB_STEPS = 20


class Weights:
    """What is on the GPU; one caller at a time."""

    def __init__(self, mib: int) -> None:
        self._mib = mib
        self._blocks: list[torch.Tensor] = []
        self._lock = threading.Lock()

    def load(self) -> None:
        with self._lock:
            missing_mib = self._mib - BLOCK_MIB * len(self._blocks)
            try:
                for _ in range(missing_mib // BLOCK_MIB):
                    block = torch.empty(BLOCK_MIB * MIB, dtype=torch.uint8, device="cuda")
                    self._blocks.append(block.fill_(1))
                torch.cuda.synchronize()
            except torch.OutOfMemoryError:
                self._free()
                raise

    def unload(self) -> None:
        with self._lock:
            self._free()

    def compute(self) -> None:
        with self._lock:
            for _ in range(JOB_STEPS):
                for block in self._blocks:
                    block.add_(1)
            torch.cuda.synchronize()

    def status(self) -> dict[str, object]:
        return {"loaded": bool(self._blocks), "reserved_mib": torch.cuda.memory_reserved() // MIB}

    def _free(self) -> None:
        self._blocks.clear()
        torch.cuda.empty_cache()


class Handler(BaseHTTPRequestHandler):
    """``GET /status``, ``POST /load``, ``/unload`` and ``/job``, whose answer is its body."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(200, weights.status())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            match self.path:
                case "/load":
                    weights.load()
                    self._answer(200, weights.status())
                case "/unload":
                    weights.unload()
                    self._answer(200, weights.status())
                case "/job":
                    weights.load()
                    weights.compute()
                    self._answer(200, {"echo": body.decode()})
                case _:
                    self._answer(404, {"error": self.path})
        except torch.OutOfMemoryError as error:
            self._answer(507, {"error": str(error)})

    def _answer(self, status: int, answer: object) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    weights = Weights(int(sys.argv[2]))
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.daemon_threads = True
    server.serve_forever()
