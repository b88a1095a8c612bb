"""A service with the usual endpoints, as small and as quick to start as one can be.

Its load and unload routes answer at once unless an option says otherwise. ``/job`` answers what it
is sent, or never when that is "hang"; ``/stream`` never ends. Neither bears that nothing is loaded.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from mgpu.gpu.simulated import HeldMemory

parser = argparse.ArgumentParser()
parser.add_argument("port", type=int)
parser.add_argument("--deaf-s", type=float, default=0.0, help="listens only after this long")
parser.add_argument("--slow-s", type=float, default=0.0, help="answers only after this long")
parser.add_argument("--lie", action="store_true", help="says that it has loaded, and has not")
parser.add_argument("--exit", type=int, help="ends at once with this status")
parser.add_argument("--fail", help="the path that answers 500")
parser.add_argument("--hang", help="the path that never answers")
parser.add_argument("--held", type=Path, help="where it holds memory while it is loaded")
parser.add_argument("--name", default="", help="under which name")
parser.add_argument("--mib", type=int, default=0, help="and how much")
parser.add_argument("--keep", action="store_true", help="does so after an unload, too")
options = parser.parse_args()

heard: list[str] = []
loaded = threading.Event()
memory = HeldMemory(options.held) if options.held else None


def hold(mib: int) -> None:
    if memory is not None:
        memory.hold(options.name, mib)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == options.hang:
            threading.Event().wait()
        answers = {"/health": {}, "/status": {"loaded": loaded.is_set()}, "/heard": heard}
        self._answer(200, answers[self.path])

    def do_POST(self) -> None:
        heard.append(f"POST {self.path}")
        if self.path in {"/job", "/stream"}:
            self._compute(self.rfile.read(int(self.headers["Content-Length"])))
            return
        if self.path == options.hang:
            threading.Event().wait()
        if self.path == options.fail:
            self._answer(500, "out of memory")
            return
        time.sleep(options.slow_s)
        if self.path == "/load":
            if not options.lie:
                hold(options.mib)
                loaded.set()
        else:
            loaded.clear()
            if not options.keep:
                hold(0)
        self._answer(200, {})

    def _compute(self, work: bytes) -> None:
        if not loaded.is_set():
            self.close_connection = True
            return
        if work == b"hang" and self.path == "/job":
            threading.Event().wait()
        self.send_response(200)
        self.send_header("Content-Length", "1000000" if self.path == "/stream" else str(len(work)))
        self.end_headers()
        self.wfile.write(work)
        if self.path == "/stream":
            threading.Event().wait()

    def _answer(self, status: int, answer: object) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


# As the first process of a container it would otherwise heed no signal.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
if options.exit is not None:
    sys.exit(options.exit)
time.sleep(options.deaf_s)
server = ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
server.daemon_threads = True
server.serve_forever()
