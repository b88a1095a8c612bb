"""OpenAI's images, made by a workflow."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.api.conftest import Site, Sites
from tests.support.comfyui import StandinComfyUI, completion, picture, slow_picture
from tests.support.png import read_png

PATH = "/v1/images/generations"
PLACES = {
    "prompt": "9.inputs.filename_prefix",
    "width": "5.inputs.width",
    "height": "5.inputs.height",
    "seed": "5.inputs.color",
}


async def site_of(
    sites: Sites,
    comfyui: StandinComfyUI,
    folder: Path,
    *,
    graph: Any = None,
    places: dict[str, Any] | None = None,
    models: tuple[str, ...] = ("one-colour",),
    max_body_mib: int = 1,
) -> Site:
    file = folder / "workflow.json"
    file.write_text(json.dumps(graph or picture()))
    workflow = {"file": file, "places": places or PLACES, "defaults": {"seed": "random"}}
    if places is not None:
        workflow["defaults"] = {}
    return await sites.broker(
        comfyui.url,
        consumer={"completion": completion(), "workflows": {"one-colour": workflow}},
        server={"max_body_mib": max_body_mib},
        models=dict.fromkeys(models, "tts"),
    )


@pytest.fixture
async def site(sites: Sites, comfyui: StandinComfyUI, tmp_path: Path) -> Site:
    return await site_of(sites, comfyui, tmp_path)


async def made(site: Site, **request: Any) -> tuple[int, Any]:
    body = {"model": "one-colour", "prompt": "a cat", **request}
    async with site.client.post(site.url(PATH), json=body) as response:
        return response.status, await response.json(content_type=None)


def pictures(answer: Any) -> list[Any]:
    return [read_png(base64.b64decode(one["b64_json"])) for one in answer["data"]]


async def test_an_image_comes_in_openais_shape(site: Site, comfyui: StandinComfyUI) -> None:
    status, answer = await made(site, size="24x16")

    assert status == 200
    assert set(answer) == {"created", "data"}
    assert abs(answer["created"] - time.time()) < 60
    (shown,) = pictures(answer)
    assert shown.size == (24, 16)
    assert comfyui.prompts[0]["prompt"]["9"]["inputs"]["filename_prefix"] == "a cat"
    assert site.broker.outcomes == {"job-1": "done"}


async def test_several_images_are_one_job_and_differ(site: Site, comfyui: StandinComfyUI) -> None:
    status, answer = await made(site, n=3, seed=0x10)

    assert status == 200
    assert [one.rows[0][:3] for one in pictures(answer)] == [b"\0\0\x10", b"\0\0\x11", b"\0\0\x12"]
    assert len(comfyui.prompts) == 3
    assert site.broker.outcomes == {"job-1": "done"}


async def test_without_a_seed_each_has_another(site: Site) -> None:
    _, answer = await made(site, n=3)
    assert len({one.rows[0] for one in pictures(answer)}) > 1


async def test_a_place_called_n_makes_them_in_one_run(
    sites: Sites, comfyui: StandinComfyUI, tmp_path: Path
) -> None:
    places = {**PLACES, "n": "5.inputs.batch_size"}
    site = await site_of(sites, comfyui, tmp_path, places=places)

    _, answer = await made(site, n=2)

    assert len(answer["data"]) == 2
    assert len(comfyui.prompts) == 1


async def test_one_image_is_asked_for_and_one_comes(
    sites: Sites, comfyui: StandinComfyUI, tmp_path: Path
) -> None:
    graph = picture()
    graph["5"]["inputs"]["batch_size"] = 4
    site = await site_of(sites, comfyui, tmp_path, graph=graph)
    assert len((await made(site))[1]["data"]) == 1


async def test_what_openai_has_and_the_workflow_has_not_is_ignored(site: Site) -> None:
    status, _ = await made(
        site,
        quality="hd",
        style="vivid",
        user="me",
        size="auto",
        response_format="b64_json",
        n=None,
    )
    assert status == 200


@pytest.mark.parametrize(
    ("request_", "detail"),
    [
        ({"prompt": None}, "'prompt' must be text."),
        ({"prompt": {"1": {}}}, "'prompt' must be text."),
        ({"n": 0}, "'n' must be a whole number from 1 to 10."),
        ({"n": 11}, "'n' must be a whole number from 1 to 10."),
        ({"n": True}, "'n' must be a whole number from 1 to 10."),
        ({"n": "2"}, "'n' must be a whole number from 1 to 10."),
        ({"size": "large"}, "'size' must be WIDTHxHEIGHT, such as 1024x1024, or auto."),
        ({"size": 512}, "'size' must be WIDTHxHEIGHT, such as 1024x1024, or auto."),
        (
            {"response_format": "url"},
            "'response_format' must be b64_json: the broker keeps no images at a URL.",
        ),
        ({"stream": True}, "'stream' is not supported for a workflow."),
        ({"seed": "7"}, "'seed' must be a number."),
        ({"sead": 7}, "The workflow has no place for 'sead'; did you mean 'seed'?"),
    ],
)
async def test_what_cannot_be_is_refused_before_it_waits(
    site: Site, comfyui: StandinComfyUI, request_: dict[str, Any], detail: str
) -> None:
    await site.broker.hold()

    status, problem = await made(site, **request_)

    assert (status, problem["detail"]) == (400, detail)
    assert not site.broker.asked
    assert not comfyui.prompts


async def test_a_size_needs_places_for_it(
    sites: Sites, comfyui: StandinComfyUI, tmp_path: Path
) -> None:
    site = await site_of(sites, comfyui, tmp_path, places={"prompt": PLACES["prompt"]})

    assert (await made(site))[0] == 200
    status, problem = await made(site, size="8x8")
    assert status == 400
    assert "no place for 'width'" in problem["detail"]


async def test_the_only_workflow_is_any_model_of_its_consumer(
    sites: Sites, comfyui: StandinComfyUI, tmp_path: Path
) -> None:
    site = await site_of(sites, comfyui, tmp_path, models=("flux",))
    assert (await made(site, model="flux"))[0] == 200
    assert len(comfyui.prompts) == 1


async def two_workflows(
    sites: Sites, comfyui: StandinComfyUI, folder: Path, **consumer: Any
) -> Site:
    """A consumer that has them, and that every model belongs to which nobody else tells of."""
    file = folder / "workflow.json"
    file.write_text(json.dumps(picture()))
    workflow = {"file": file, "places": PLACES}
    workflows = {"day": workflow, "night": workflow}
    return await sites.broker(
        comfyui.url,
        consumer={"completion": completion(), "workflows": workflows, **consumer},
        models={"flux": "tts"},
    )


@pytest.mark.parametrize("model", ["flux", "dall-e-3"])
async def test_a_model_that_is_none_of_several_workflows_is_told_which_there_are(
    sites: Sites, comfyui: StandinComfyUI, tmp_path: Path, model: str
) -> None:
    site = await two_workflows(sites, comfyui, tmp_path)

    status, problem = await made(site, model=model)

    assert (status, problem["type"]) == (404, "urn:mgpu:unknown-model")
    said = f"tts has no workflow {model!r}, but the workflows day, night."
    assert problem["detail"] == problem["error"]["message"] == said
    assert not site.broker.asked


async def test_a_workflow_is_found_by_its_name_alone(
    sites: Sites, comfyui: StandinComfyUI, tmp_path: Path
) -> None:
    site = await two_workflows(sites, comfyui, tmp_path)

    assert (await made(site, model="night", seed=1))[0] == 200


async def test_what_no_workflow_does_is_told_where_they_can_be_had(
    sites: Sites, comfyui: StandinComfyUI, tmp_path: Path
) -> None:
    site = await two_workflows(sites, comfyui, tmp_path)
    form = aiohttp.FormData({"model": "flux", "prompt": "a cat"})
    form.add_field("image", b"x", filename="a.png")

    async with site.client.post(site.url("/v1/images/edits"), data=form) as response:
        problem = await response.json(content_type=None)

    assert (response.status, problem["type"]) == (404, "urn:mgpu:unknown-route")
    assert problem["error"]["message"] == (
        "tts has no /v1/images/edits: its workflows day, night can be had at "
        "/v1/images/generations."
    )
    assert not site.broker.asked


async def test_a_path_that_it_has_besides_its_workflows_is_passed_on(
    sites: Sites, comfyui: StandinComfyUI, tmp_path: Path
) -> None:
    site = await two_workflows(sites, comfyui, tmp_path, paths={PATH: "/nowhere"})

    async with site.client.post(site.url(PATH), json={"model": "flux"}) as response:
        assert response.status == 404
        assert response.headers["X-MGPU-Consumer"] == "tts"
        assert response.content_type != "application/problem+json"


async def test_the_consumers_own_refusal_passes_unchanged(site: Site) -> None:
    status, answer = await made(site, size="20000x8")
    assert status == 400
    assert answer["error"]["type"] == "prompt_outputs_failed_validation"


async def test_a_failing_run_is_told_in_the_consumers_words(
    sites: Sites, comfyui: StandinComfyUI, tmp_path: Path
) -> None:
    places = {**PLACES, "depth": "5.inputs.batch_size"}
    site = await site_of(sites, comfyui, tmp_path, places=places)

    status, answer = await made(site, size="16384x16384", depth=4096)

    assert status == 500
    assert answer["error"]["exception_type"] == "RuntimeError"
    assert site.broker.outcomes == {"job-1": "failed"}


async def test_more_than_may_be_held_is_refused(
    sites: Sites, comfyui: StandinComfyUI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = await site_of(sites, comfyui, tmp_path)
    monkeypatch.setattr("mgpu.api.images._MIB", 10)

    status, problem = await made(site)

    assert (status, problem["type"]) == (502, "urn:mgpu:consumer-failed")


async def test_a_workflow_without_images_says_so(
    sites: Sites, comfyui: StandinComfyUI, tmp_path: Path
) -> None:
    graph = picture(save="PreviewAny")
    graph["9"]["inputs"]["label"] = ""
    places = {"prompt": "9.inputs.label"}
    site = await site_of(sites, comfyui, tmp_path, graph=graph, places=places)

    status, problem = await made(site)

    assert status == 502
    assert problem["detail"] == "tts made no image."


async def test_a_client_that_leaves_ends_all_runs(
    sites: Sites, comfyui: StandinComfyUI, tmp_path: Path
) -> None:
    site = await site_of(sites, comfyui, tmp_path, graph=slow_picture(3))
    comfyui.gate.close()
    client = asyncio.create_task(made(site, n=3))
    await comfyui.gate.reached()

    client.cancel()
    await site.broker.until(lambda broker: bool(broker.running))
    async with asyncio.timeout(5):
        for _ in range(500):
            if comfyui.interrupts:
                break
            await asyncio.sleep(0.01)
    comfyui.gate.open()

    await site.broker.until(lambda broker: list(broker.outcomes.values()) == ["cancelled"])
    assert len(comfyui.prompts) == 1
