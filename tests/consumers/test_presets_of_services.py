"""What is special about one service, where its preset has to mind it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from mgpu.consumers.http import HttpController
from mgpu.errors import LoadFailed, UnloadFailed
from mgpu.ports import Placement
from tests.support.presets import Start, configured
from tests.support.servers import BadServer, free_port, serving
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
from tests.support.services.serving import TorchServe, Triton
from tests.support.services.speech import ChatterboxServer, Kokoro, Speaches

NOWHERE = Placement()


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


async def test_ollama_s_model_is_loaded_without_a_word_from_it(sites: Start) -> None:
    site = await sites(Ollama)
    await site.controller.load(NOWHERE)

    assert site.service.held == {"qwen3:8b"}
    assert [body for body in site.service.bodies if body] == [{"model": "qwen3:8b"}]


async def test_ollama_loads_nothing_by_itself_where_no_model_is_named(sites: Start) -> None:
    site = await sites(Ollama, parameters={})
    await site.controller.load(NOWHERE)

    assert site.config.load is None
    assert site.service.changes == []


async def test_a_model_that_ollama_cannot_load_so_fails_the_load(sites: Start) -> None:
    site = await sites(Ollama, parameters={"model": "embeds"})
    with pytest.raises(LoadFailed, match="answered 400"):
        await site.controller.load(NOWHERE)


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


async def test_koboldcpp_that_was_started_with_its_model_is_not_restarted_by_a_load(
    sites: Start,
) -> None:
    site = await sites(KoboldCpp)
    await site.controller.load(NOWHERE)
    await site.controller.unload()
    assert site.service.restarts == 1

    await site.controller.load(NOWHERE)

    assert site.service.restarts == 2


async def test_koboldcpp_s_200_is_no_success_with_a_wrong_password(sites: Start) -> None:
    site = await sites(KoboldCpp, headers={"Authorization": "Bearer wrong"})
    site.service.password = "right"
    with pytest.raises(UnloadFailed, match=r'answered 200 \{"success": false\}'):
        await site.controller.unload()
    site.service.held.clear()
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


async def test_speaches_whose_load_failed_takes_a_second_unload(sites: Start) -> None:
    site = await sites(Speaches)
    site.service.fail_to_load()
    with pytest.raises(UnloadFailed, match="answered 409"):
        await site.controller.unload()
    await site.controller.unload()
    assert (await site.controller.probe()).resident is False


async def test_speaches_with_nothing_but_what_looks_for_speech_is_absent(sites: Start) -> None:
    site = await sites(Speaches)
    site.service.put_in()
    site.service.let_go()
    assert (await site.controller.probe()).resident is False
    await site.controller.unload()
    assert not site.service.held


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


async def test_invokeai_is_not_kept_by_what_waits_in_a_queue_that_was_paused(
    sites: Start,
) -> None:
    site = await sites(InvokeAi, unload={"timeout_s": 0.3})
    site.service.put_in()
    site.service.pending = 1
    with pytest.raises(UnloadFailed, match="computes"):
        await site.controller.unload()

    site.service.paused = True

    await site.controller.unload()
    assert not site.service.held


async def test_invokeai_is_kept_by_the_node_of_a_batch_that_was_cancelled(sites: Start) -> None:
    site = await sites(InvokeAi)
    site.service.put_in()
    site.service.computing = 1
    site.service.cancelled = True
    unloading = asyncio.create_task(site.controller.unload())
    await site.service.until(lambda: len(site.service.calls) > 3)
    assert site.service.changes == []

    site.service.computing = 0

    await unloading
    assert not site.service.held


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
