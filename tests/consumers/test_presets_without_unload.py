"""Services without any way to be unloaded: what a preset knows of them."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest
import yaml

from mgpu.api.routes import Upstream
from mgpu.config import presets
from mgpu.config.load import load
from mgpu.config.policy import policy
from mgpu.consumers.http import HttpController
from mgpu.errors import Forbidden
from mgpu.ports import Placement
from tests.support.presets import built_in, configured
from tests.support.servers import BadServer, free_port, serving

NOWHERE = Placement()


WITHOUT = sorted(
    path.stem for path in presets.BUILT_IN.glob("*.yaml") if not built_in(path.stem).frees_vram
)


@pytest.mark.parametrize("name", WITHOUT)
def test_only_stopping_it_frees_what_it_holds(tmp_path: Path, name: str) -> None:
    path = tmp_path / "broker.yaml"

    def can_unload(unit: str | None) -> bool:
        consumer = {"url": "http://127.0.0.1:1", "preset": name, "systemd_unit": unit}
        path.write_text(yaml.safe_dump({"consumers": {"x": consumer}}))
        return policy(load(path)).consumers["x"].can_unload

    assert not can_unload(None)
    assert can_unload("x.service")


HEALTH: dict[str, list[tuple[int, str, bool]]] = {
    "alltalk": [(200, "Ready", True), (500, "", False)],
    "chatterbox-tts-api": [
        (200, '{"initialization_state": "ready", "model_loaded": true}', True),
        (200, '{"initialization_state": "initializing", "model_loaded": false}', False),
    ],
    "frigate": [(200, "0.17", True), (502, "", False)],
    "immich-ml": [(200, "pong", True), (502, "", False)],
    "infinity": [(200, '{"unix": 1.0, "data": []}', True), (500, "", False)],
    "llama-cpp": [
        (200, '{"status": "ok"}', True),
        (503, '{"error": {"message": "Loading model"}}', False),
    ],
    "llama-cpp-python": [(200, '{"data": []}', True), (500, "", False)],
    "stable-diffusion-cpp": [(200, '{"data": [{"id": "sd-cpp-local"}]}', True), (500, "", False)],
    "openedai-speech": [(200, '{"status": "ok"}', True), (200, '{"status": "x"}', False)],
    "tei": [(200, "te_queue_size 0\n", True), (503, "", False)],
    "text-generation-inference": [(200, "tgi_queue_size 0\n", True), (503, "", False)],
    "whisper-cpp": [(200, '{"status": "ok"}', True), (503, '{"status": "loading model"}', False)],
    "xtts-api-server": [(200, '{"languages": {}}', True), (500, "", False)],
}


@pytest.mark.parametrize(
    ("name", "status", "text", "healthy"),
    [(name, *answer) for name, answers in HEALTH.items() for answer in answers],
)
async def test_it_says_how_it_is(  # noqa: PLR0917 - one answer and what it means
    tmp_path: Path,
    session: aiohttp.ClientSession,
    name: str,
    status: int,
    text: str,
    healthy: bool,
) -> None:
    answer = f"HTTP/1.1 {status} x\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()
    async with serving(BadServer(answer)) as server:
        config = configured(tmp_path, server.url, name)
        report = await HttpController("x", config, session).probe()

    assert (report.reachable, report.healthy, report.busy) == (True, healthy, False)


@pytest.mark.parametrize("name", sorted(set(WITHOUT) - set(HEALTH)))
async def test_without_a_health_route_it_is_well_when_it_accepts_connections(
    tmp_path: Path, session: aiohttp.ClientSession, name: str
) -> None:
    async with serving(BadServer()) as server:
        config = configured(tmp_path, server.url, name)
        assert (await HttpController("x", config, session).probe()).healthy
    config = configured(tmp_path, f"http://127.0.0.1:{free_port()}", name)
    assert not (await HttpController("x", config, session).probe()).reachable


@pytest.mark.parametrize(
    ("name", "text", "busy"),
    [
        ("infinity", '{"data": [{"stats": {"queue_absolute": 2, "results_pending": 0}}]}', True),
        ("infinity", '{"data": [{"stats": {"queue_absolute": 0, "results_pending": 0}}]}', False),
        ("tei", "# TYPE te_queue_size gauge\nte_queue_size 3\n", True),
        ("tei", "te_queue_size 0\n", False),
    ],
)
async def test_an_embedder_says_whether_somebody_waits(
    tmp_path: Path, session: aiohttp.ClientSession, name: str, text: str, busy: bool
) -> None:
    answer = f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()
    async with serving(BadServer(answer)) as server:
        config = configured(tmp_path, server.url, name)
        assert (await HttpController("x", config, session).probe()).busy is busy


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("whisper-cpp", "POST /load"),
        ("llama-cpp", "DELETE /models/m"),
        ("alltalk", "POST /api/reload"),
        ("frigate", "POST /api/restart"),
        ("xtts-api-server", "POST /switch_model"),
    ],
)
def test_what_would_end_or_swap_it_is_denied(tmp_path: Path, name: str, request_: str) -> None:
    config = configured(tmp_path, "http://127.0.0.1:1", name)
    with pytest.raises(Forbidden):
        Upstream("x", config).check_allowed(*request_.split(" "))
