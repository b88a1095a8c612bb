"""Every preset against a service that answers as the real one does, through a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from mgpu.api.routes import Upstream
from mgpu.config import presets
from mgpu.config.load import load
from mgpu.config.model import ConsumerConfig
from mgpu.config.policy import policy
from mgpu.config.presets import Preset
from mgpu.consumers.completion import Completion
from mgpu.consumers.http import HttpController
from mgpu.errors import Forbidden, LoadFailed, UnloadFailed
from mgpu.ports import Placement
from tests.support.servers import BadServer, free_port, serving
from tests.support.services.base import Service
from tests.support.services.catalogue import SERVICES
from tests.support.services.images import (
    Automatic1111,
    ComfyUi,
    Forge,
    InvokeAi,
    SdNext,
    SwarmUi,
)
from tests.support.services.language import (
    KoboldCpp,
    LlamaRouter,
    LlamaServer,
    Ollama,
    SgLang,
    TabbyApi,
    TextGenerationWebUi,
    Vllm,
)
from tests.support.services.managers import (
    Lemonade,
    LlamaSwap,
    LmStudio,
    LocalAi,
    Xinference,
)
from tests.support.services.plain import SdServer, WhisperAsr
from tests.support.services.serving import TorchServe, Triton
from tests.support.services.speech import ChatterboxServer, Kokoro, Speaches

ONE_PORT: dict[str, dict[str, Any]] = {
    "triton": {"busy": {"port": None}},
    "torchserve": {key: {"port": None} for key in ("load", "unload", "resident", "busy")},
}
"""The stand-ins have one port for everything."""

Start = Callable[..., Any]
NOWHERE = Placement()


def configured(folder: Path, url: str, preset: str, **keys: Any) -> ConsumerConfig:
    """The consumer that a broker.yaml with this preset gives."""
    consumer = {"url": url, "preset": preset, **ONE_PORT.get(preset, {}), **keys}
    path = folder / "broker.yaml"
    path.write_text(yaml.safe_dump({"consumers": {"x": consumer}}))
    return load(path).consumers["x"]


class Site:
    """A service that runs, and the broker's controller of it."""

    def __init__(self, service: Service, config: ConsumerConfig, session: Any) -> None:
        self.service = service
        self.config = config
        self.controller = HttpController("x", config, session)
        self.upstream = Upstream("x", config)


@pytest.fixture
async def sites(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[Start]:
    started: list[Service] = []

    async def start(kind: type[Service], **keys: Any) -> Site:
        service = kind()
        await service.start()
        started.append(service)
        given: dict[str, Any] = {"parameters": dict(kind.parameters), **keys}
        return Site(service, configured(tmp_path, service.url, kind.preset, **given), session)

    yield start
    for service in started:
        await service.stop()


@cache
def built_in(name: str) -> Preset:
    return presets.find(name, Path("/nowhere")).preset


def having(key: str) -> list[type[Service]]:
    """The services whose preset, with all its parameters, has a key."""
    return [kind for kind in SERVICES if key in built_in(kind.preset).consumer]


def names(kinds: list[type[Service]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: kind.preset)


# What every service does


@names(having("load"))
async def test_a_load_ends_when_it_is_resident(sites: Start, kind: type[Service]) -> None:
    site = await sites(kind)
    if kind.begins_resident:
        await site.controller.unload()
    assert not site.service.held

    await site.controller.load(NOWHERE)

    assert site.service.held
    assert (await site.controller.probe()).resident is (True if has_word(site) else None)


def has_word(site: Site) -> bool:
    remembered = site.config.unload is not None and not site.config.unload.repeatable
    return site.config.resident is not None or remembered


# A load of KoboldCpp is a restart, whatever it had loaded before.
@names([kind for kind in having("load") if kind is not KoboldCpp])
async def test_a_load_of_one_that_is_resident_does_no_harm(
    sites: Start, kind: type[Service]
) -> None:
    site = await sites(kind)
    await site.controller.load(NOWHERE)
    await site.controller.load(NOWHERE)

    assert site.service.held
    assert site.service.broken is None


@names(having("unload"))
async def test_an_unload_frees_it(sites: Start, kind: type[Service]) -> None:
    site = await sites(kind)
    site.service.put_in()

    await site.controller.unload()

    await site.service.until(lambda: not site.service.held)
    assert site.service.broken is None
    if has_word(site):
        assert (await site.controller.probe()).resident is False


@names(having("unload"))
async def test_an_unload_of_one_that_holds_nothing_is_no_failure(
    sites: Start, kind: type[Service]
) -> None:
    site = await sites(kind)
    await site.controller.unload()
    await site.service.until(lambda: not site.service.held)

    await site.controller.unload()

    assert not site.service.held
    assert site.service.broken is None


@names(having("unload"))
async def test_a_whole_cycle_twice(sites: Start, kind: type[Service]) -> None:
    site = await sites(kind)
    if kind.begins_resident:
        await site.controller.unload()
    for _ in range(2):
        await site.controller.load(NOWHERE)
        if site.config.load is None:
            site.service.put_in()
        assert site.service.held
        await site.controller.unload()
        await site.service.until(lambda: not site.service.held)
    assert site.service.broken is None


@names([kind for kind in SERVICES if kind.tells_resident and kind is not SgLang])
async def test_it_is_believed_about_what_it_holds(sites: Start, kind: type[Service]) -> None:
    site = await sites(kind)
    site.service.put_in()
    assert (await site.controller.probe()).resident is True
    site.service.held.clear()
    if isinstance(site.service, Speaches):
        site.service.listed.clear()
    assert (await site.controller.probe()).resident is False


@names([kind for kind in SERVICES if not kind.tells_resident])
async def test_one_that_cannot_tell_is_not_asked(sites: Start, kind: type[Service]) -> None:
    site = await sites(kind)

    assert (await site.controller.probe()).resident is None


@names(having("busy"))
async def test_it_says_that_it_computes(sites: Start, kind: type[Service]) -> None:
    site = await sites(kind)
    site.service.put_in()
    assert (await site.controller.probe()).busy is False

    site.service.computing = 1

    report = await site.controller.probe()
    assert (report.busy, report.healthy) == (True, True)


@names([kind for kind in having("busy") if kind in having("unload")])
async def test_no_unload_is_sent_while_it_computes(sites: Start, kind: type[Service]) -> None:
    site = await sites(kind)
    site.service.put_in()
    site.service.computing = 1
    before = len(site.service.calls)
    unloading = asyncio.create_task(site.controller.unload())
    await site.service.until(lambda: len(site.service.calls) > before + 3)
    assert site.service.held
    assert not [call for call in site.service.changes if "index" not in call]

    site.service.computing = 0
    await unloading

    await site.service.until(lambda: not site.service.held)
    assert site.service.broken is None


@names([kind for kind in having("busy") if kind in having("unload")])
async def test_one_that_computes_on_and_on_is_left_in_peace(
    sites: Start, kind: type[Service]
) -> None:
    site = await sites(kind, unload={"timeout_s": 0.3})
    site.service.put_in()
    site.service.computing = 1

    with pytest.raises(UnloadFailed, match="was not sent, as the consumer computes"):
        await site.controller.unload()

    assert site.service.held


@names(list(SERVICES))
async def test_it_is_well(sites: Start, kind: type[Service]) -> None:
    site = await sites(kind)
    report = await site.controller.probe()

    assert (report.reachable, report.healthy, report.detail) == (True, True, "")


@names(list(SERVICES))
async def test_asking_how_it_is_changes_nothing(sites: Start, kind: type[Service]) -> None:
    site = await sites(kind)
    site.service.held.clear()
    for _ in range(3):
        await site.controller.probe()

    assert not site.service.held
    assert site.service.broken is None
    assert not [call for call in site.service.changes if "index" not in call]


@names(list(SERVICES))
async def test_one_that_is_down_is_not_there(sites: Start, kind: type[Service]) -> None:
    site = await sites(kind)
    await site.service.stop()
    report = await site.controller.probe()

    assert (report.reachable, report.healthy) == (False, False)
    await site.controller.unload()


@names([kind for kind in SERVICES if kind is not WhisperAsr])
async def test_one_that_answers_503_to_everything_is_not_well(
    sites: Start, kind: type[Service]
) -> None:
    site = await sites(kind)
    site.service.broken = "Loading model"
    report = await site.controller.probe()

    assert report.reachable
    # TabbyAPI says in this way that it is well and has no model.
    assert report.healthy is (kind is TabbyApi)
    assert report.resident is (False if kind is TabbyApi else True if kind is SgLang else None)


@names(list(SERVICES))
async def test_what_is_work_is_a_job_and_what_is_not_is_none(
    sites: Start, kind: type[Service]
) -> None:
    site = await sites(kind)
    assert kind.jobs
    for request in kind.jobs:
        assert site.upstream.is_activity(*request.split(" ")), request
    for request in kind.looks:
        assert not site.upstream.is_activity(*request.split(" ")), request


@names(list(SERVICES))
async def test_what_destroys_is_denied_and_nothing_else(sites: Start, kind: type[Service]) -> None:
    site = await sites(kind)
    for request in kind.dangers:
        with pytest.raises(Forbidden):
            site.upstream.check_allowed(*request.split(" "))
    for request in (*kind.jobs, *kind.looks):
        site.upstream.check_allowed(*request.split(" "))


@names([kind for kind in SERVICES if kind is not WhisperAsr])
async def test_a_key_of_the_user_s_goes_with_everything_that_is_asked(
    sites: Start, kind: type[Service]
) -> None:
    site = await sites(kind, headers={"Authorization": "Bearer secret"})
    site.service.put_in()
    await site.controller.probe()
    await site.controller.unload()
    await site.controller.load(NOWHERE)

    assert site.service.headers
    assert {sent.get("Authorization") for sent in site.service.headers} == {"Bearer secret"}


@names(having("unload"))
async def test_one_that_hangs_in_an_unload_is_left_at_the_deadline(
    tmp_path: Path, session: aiohttp.ClientSession, kind: type[Service]
) -> None:
    unload = {"timeout_s": 0.2, "port": None}
    parameters = dict(kind.parameters)
    async with serving(BadServer()) as server:
        config = configured(
            tmp_path, server.url, kind.preset, parameters=parameters, unload=unload, busy=None
        )
        with pytest.raises(UnloadFailed, match=r"did not end within 0\.2 s"):
            await HttpController("x", config, session).unload()


# Services without any way to be unloaded


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
        ("infinity", '{"data": [{"stats": {"results_pending": 2}}]}', True),
        ("infinity", '{"data": [{"stats": {"results_pending": 0}}]}', False),
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


# What is special about one


async def test_comfyui_is_asked_to_free_only_when_its_queue_is_empty(sites: Start) -> None:
    site = await sites(ComfyUi)
    service = site.service
    async with aiohttp.ClientSession() as client:
        await client.post(f"{service.url}/prompt", json={"prompt": {}})
    unloading = asyncio.create_task(site.controller.unload())
    await service.until(lambda: service.calls.count("GET /prompt") > 3)
    assert "POST /free" not in service.calls

    service.finish()
    await unloading

    assert service.bodies[-1] == {"unload_models": True, "free_memory": True}
    assert service.held, "it has only set a flag: the GPU tells when it acts"
    await service.until(lambda: not service.held)


async def test_automatic1111_is_loaded_before_a_job_since_it_would_not_do_so_itself(
    sites: Start,
) -> None:
    site = await sites(Automatic1111)
    site.service.put_in()
    await site.controller.unload()
    async with aiohttp.ClientSession() as client:
        before = await client.post(f"{site.service.url}/sdapi/v1/txt2img", json={})
        await site.controller.load(NOWHERE)
        after = await client.post(f"{site.service.url}/sdapi/v1/txt2img", json={})

    assert (before.status, after.status) == (500, 200)


async def test_forge_s_reload_is_not_relied_on(sites: Start) -> None:
    site = await sites(Forge)
    await site.controller.load(NOWHERE)

    assert site.service.changes == []
    assert site.config.load is None


async def test_automatic1111_s_progress_comes_without_a_picture(sites: Start) -> None:
    site = await sites(Automatic1111)
    site.service.computing = 1
    await site.controller.probe()

    assert "GET /sdapi/v1/progress?skip_current_image=true" in site.service.calls


async def test_every_model_of_ollama_is_unloaded_and_nothing_is_asked_of_others(
    sites: Start,
) -> None:
    site = await sites(Ollama)
    site.service.held |= {"llama3:8b", "org/embed", "gone"}
    await site.controller.unload()

    assert not site.service.held, "it is over when the last one has left"
    sent = [body for body in site.service.bodies if body]
    assert sent == [{"model": name, "keep_alive": 0} for name in ("gone", "llama3:8b", "org/embed")]


async def test_the_router_s_models_are_awaited_both_ways(sites: Start) -> None:
    site = await sites(LlamaRouter)
    await site.controller.load(NOWHERE)
    site.service.held.add("second")
    await site.controller.unload()

    assert site.service.changes == [
        "POST /models/load",
        "POST /models/unload",
        "POST /models/unload",
    ]
    assert not site.service.held


async def test_a_model_that_the_router_does_not_know_fails_the_load(sites: Start) -> None:
    site = await sites(LlamaRouter, parameters={"model": "unknown"})
    with pytest.raises(LoadFailed, match="answered 404"):
        await site.controller.load(NOWHERE)


async def test_a_sleeping_llama_server_is_not_woken_by_asking(sites: Start) -> None:
    site = await sites(LlamaServer)
    site.service.held.clear()

    assert (await site.controller.probe()).resident is False
    assert "GET /slots" not in site.service.calls


async def test_vllm_is_well_and_not_resident_while_it_sleeps(sites: Start) -> None:
    site = await sites(Vllm)
    await site.controller.unload()
    report = await site.controller.probe()

    assert (report.healthy, report.resident) == (True, False)
    assert "POST /sleep?level=1&mode=wait" in site.service.calls


async def test_vllm_without_its_sleep_mode_says_so(sites: Start) -> None:
    site = await sites(Vllm, unload={"path": "/sleep-is-not-there"})
    with pytest.raises(UnloadFailed, match="answered 404"):
        await site.controller.unload()


async def test_sglang_is_asked_to_release_and_resume_once_each(sites: Start) -> None:
    site = await sites(SgLang)
    await site.controller.load(NOWHERE)
    await site.controller.unload()
    await site.controller.unload()
    await site.controller.load(NOWHERE)
    await site.controller.load(NOWHERE)

    assert site.service.changes == [
        "POST /release_memory_occupation",
        "POST /resume_memory_occupation",
    ]
    assert site.service.broken is None
    assert not any("health" in call for call in site.service.calls)


async def test_sglang_that_was_restarted_is_resident_and_not_resumed(sites: Start) -> None:
    site = await sites(SgLang)
    await site.controller.unload()
    await site.service.stop()
    assert (await site.controller.probe()).reachable is False
    site.service.put_in()
    await site.service.start()

    assert (await site.controller.probe()).resident is True
    await site.controller.load(NOWHERE)
    assert site.service.changes == ["POST /release_memory_occupation"]


async def test_a_release_that_may_have_been_acted_on_is_not_sent_again(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    async with serving(BadServer(hang_up=True)) as server:
        config = configured(tmp_path, server.url, "sglang", busy=None)
        controller = HttpController("x", config, session)
        with pytest.raises(UnloadFailed, match="closed the connection"):
            await controller.unload()
        await controller.unload()
        assert server.requests == 1


async def test_tabbyapi_s_load_is_judged_by_what_is_there_afterwards(sites: Start) -> None:
    site = await sites(TabbyApi, parameters={"model": "broken"}, load={"timeout_s": 0.5})
    with pytest.raises(LoadFailed, match="answered 200, but the consumer was not resident"):
        await site.controller.load(NOWHERE)


async def test_koboldcpp_is_waited_for_until_its_new_server_listens(sites: Start) -> None:
    site = await sites(KoboldCpp)
    await site.controller.unload()
    assert (site.service.restarts, site.service.held) == (1, set())
    report = await site.controller.probe()
    assert (report.reachable, report.resident) == (True, False)

    await site.controller.load(NOWHERE)

    assert site.service.restarts == 2
    assert [body["filename"] for body in site.service.bodies if body] == [
        "unload_model",
        "initial_model",
    ]


async def test_koboldcpp_that_does_not_come_back_has_unloaded_all_the_same(sites: Start) -> None:
    site = await sites(KoboldCpp, unload={"timeout_s": 0.5})
    site.service.comes_back = False
    await site.controller.unload()

    assert not site.service.held


async def test_koboldcpp_s_200_is_no_success_with_a_wrong_password(sites: Start) -> None:
    site = await sites(KoboldCpp, headers={"Authorization": "Bearer wrong"})
    site.service.password = "right"
    with pytest.raises(UnloadFailed, match=r'answered 200 \{"success": false\}'):
        await site.controller.unload()
    with pytest.raises(LoadFailed, match=r'answered 200 \{"success": false\}'):
        await site.controller.load(NOWHERE)


async def test_text_generation_webui_tells_a_failed_load_by_its_status(sites: Start) -> None:
    site = await sites(TextGenerationWebUi, parameters={"model": "broken"})
    with pytest.raises(LoadFailed, match="answered 500"):
        await site.controller.load(NOWHERE)


async def test_lemonade_is_never_sent_an_unload_without_a_name(sites: Start) -> None:
    site = await sites(Lemonade)
    await site.controller.unload()
    assert site.service.changes == []
    site.service.held |= {"a", "b"}
    await site.controller.unload()
    assert [body for body in site.service.bodies if body] == [
        {"model_name": "a"},
        {"model_name": "b"},
    ]


async def test_lemonade_s_success_for_one_that_hangs_is_not_believed(sites: Start) -> None:
    site = await sites(Lemonade, unload={"timeout_s": 0.3})
    site.service.put_in()
    site.service.wedged = True
    with pytest.raises(UnloadFailed, match="was accepted, but the consumer was still resident"):
        await site.controller.unload()


async def test_lm_studio_is_given_the_id_of_the_instance(sites: Start) -> None:
    site = await sites(LmStudio)
    site.service.put_in()
    await site.controller.unload()

    assert (
        site.service.bodies[-2] == {"instance_id": "m:2"}
        or {"instance_id": "m:2"} in site.service.bodies
    )
    assert not site.service.held


async def test_speaches_is_asked_for_each_model_with_its_slashes(sites: Start) -> None:
    site = await sites(Speaches)
    await site.controller.load(NOWHERE)
    await site.controller.unload()

    assert site.service.changes == [
        "POST /api/ps/Systran/faster-whisper-small",
        "DELETE /api/ps/Systran/faster-whisper-small",
    ]


async def test_speaches_in_use_is_a_failed_unload(sites: Start) -> None:
    site = await sites(Speaches)
    site.service.put_in()
    site.service.computing = 1
    with pytest.raises(UnloadFailed, match="answered 409"):
        await site.controller.unload()
    assert site.service.held


async def test_kokoro_without_its_unload_says_so(sites: Start) -> None:
    site = await sites(Kokoro)
    site.service.allowed = False
    with pytest.raises(UnloadFailed, match="answered 403"):
        await site.controller.unload()


async def test_chatterbox_is_loaded_again_before_speech(sites: Start) -> None:
    site = await sites(ChatterboxServer)
    await site.controller.unload()
    async with aiohttp.ClientSession() as client:
        before = await client.post(f"{site.service.url}/tts")
        await site.controller.load(NOWHERE)
        after = await client.post(f"{site.service.url}/tts")

    assert (before.status, after.status) == (503, 200)


async def test_swarmui_gets_a_session_for_each_unload_and_for_nothing_else(sites: Start) -> None:
    site = await sites(SwarmUi)
    site.service.put_in()
    await site.controller.probe()
    assert site.service.sessions == set()

    await site.controller.unload()

    assert site.service.changes == ["POST /API/GetNewSession", "POST /API/FreeBackendMemory"]
    sent = [body for body in site.service.bodies if body is not None]
    assert sent == [{}, {"system_ram": False, "backend": "all"}]
    assert site.service.headers[-1]["X-Session-ID"] == "S0/="


async def test_swarmui_s_first_comfyui_tells_whether_it_computes(sites: Start) -> None:
    site = await sites(SwarmUi)
    site.service.computing = 1
    assert (await site.controller.probe()).busy is True

    site.service.has_comfyui = False

    report = await site.controller.probe()
    assert (report.healthy, report.busy) == (True, False)
    assert report.detail.startswith("GET /ComfyBackendDirect/prompt: answered 400 No ComfyUI")


async def test_xinference_launches_by_what_the_user_has_said(sites: Start) -> None:
    given = {"model": "bge-m3", "engine": "sentence_transformers", "type": "embedding"}
    site = await sites(Xinference, parameters=given)
    await site.controller.load(NOWHERE)

    assert next(body for body in site.service.bodies if body) == {
        "model_uid": "bge-m3",
        "model_name": "bge-m3",
        "model_engine": "sentence_transformers",
        "model_type": "embedding",
    }


async def test_triton_is_awaited_and_unloads_only_what_is_ready(sites: Start) -> None:
    site = await sites(Triton)
    site.service.held |= {"a", "b"}
    await site.controller.unload()

    unloads = [call for call in site.service.changes if call.endswith("/unload")]
    assert unloads == [f"POST /v2/repository/models/{name}/unload" for name in "ab"]
    assert not site.service.held


async def test_triton_without_its_metrics_is_well(sites: Start) -> None:
    site = await sites(Triton, busy={"port": free_port()})
    report = await site.controller.probe()

    assert (report.reachable, report.healthy, report.busy) == (True, True, False)
    assert report.detail == "GET /metrics: connection refused: nothing listens there"


async def test_torchserve_stays_well_without_workers(sites: Start) -> None:
    site = await sites(TorchServe)
    await site.controller.load(NOWHERE)
    await site.controller.unload()

    assert (await site.controller.probe()).healthy
    assert site.service.changes[-1].endswith(
        "?min_worker=0&max_worker=0&synchronous=true&timeout=-1"
    )


async def test_invokeai_s_silence_about_models_in_use_is_not_relied_on(sites: Start) -> None:
    site = await sites(InvokeAi, unload={"timeout_s": 0.3})
    site.service.put_in()
    site.service.computing = 1
    with pytest.raises(UnloadFailed, match="computes"):
        await site.controller.unload()
    assert site.service.changes == []


async def test_sdnext_s_empty_answer_is_a_success(sites: Start) -> None:
    site = await sites(SdNext)
    site.service.put_in()
    await site.controller.unload()
    assert not site.service.held


async def test_llama_swap_s_model_keeps_its_slash(sites: Start) -> None:
    site = await sites(LlamaSwap)
    await site.controller.load(NOWHERE)
    assert site.service.held == {"org/m"}


async def test_localai_unloads_each_of_its_models(sites: Start) -> None:
    site = await sites(LocalAi)
    site.service.held |= {"a", "b"}
    await site.controller.unload()
    assert not site.service.held


# Work that goes on after its answer


@names([InvokeAi, SdServer])
async def test_work_is_over_when_the_service_says_so(
    sites: Start, session: aiohttp.ClientSession, kind: type[Service]
) -> None:
    site = await sites(kind)
    declared = site.config.completion
    assert declared is not None
    method, path = declared.requests[0].split(" ")
    assert site.upstream.outlasts_its_answer(method, path)
    completion = Completion("x", site.service.url, declared, session)
    async with session.request(method, site.service.url + path, json={}) as answer:
        work = completion.work_in(await answer.read())
    assert work is not None
    ended = asyncio.create_task(completion.ended(work, asyncio.Event()))
    await site.service.until(lambda: site.service.calls[-1].startswith("GET "))
    assert not ended.done()

    site.service.computing = 0

    async with asyncio.timeout(5):
        ending = await ended
    assert (ending.failed, ending.dropped) == (False, False)


async def test_a_batch_of_invokeai_that_nobody_wants_is_cancelled(
    sites: Start, session: aiohttp.ClientSession
) -> None:
    site = await sites(InvokeAi)
    completion = Completion("x", site.service.url, site.config.completion, session)
    async with session.post(f"{site.service.url}/api/v1/queue/default/enqueue_batch") as answer:
        work = completion.work_in(await answer.read())
    assert work is not None
    unwanted = asyncio.Event()
    unwanted.set()

    async with asyncio.timeout(5):
        await completion.ended(work, unwanted)

    assert {"batch_ids": ["b"]} in site.service.bodies
