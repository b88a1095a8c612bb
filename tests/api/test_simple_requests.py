"""A simple request, filled into a workflow of the user's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mgpu.api import body
from tests.api.conftest import Site, Sites
from tests.support.comfyui import StandinComfyUI, completion, picture
from tests.support.png import read_png

EDITORS = (
    "This is a workflow as ComfyUI's editor saves it. Export it in API format: "
    "in ComfyUI's menu, Export (API)."
)


def post(site: Site, path: str, graph: Any, **how: Any) -> Any:
    return site.client.post(site.url(path), json={"prompt": graph}, **how)


@pytest.fixture
async def simple(sites: Sites, comfyui: StandinComfyUI, tmp_path: Path) -> Site:
    (tmp_path / "workflow.json").write_text(json.dumps(picture()))
    places = {"prompt": "9.inputs.filename_prefix", "width": "5.inputs.width"}
    workflow = {"file": tmp_path / "workflow.json", "places": places}
    return await sites.broker(
        comfyui.url,
        consumer={"completion": completion(), "workflows": {"one": workflow}},
        routes={"/v1/image": {"consumer": "tts", "path": "/prompt", "workflow": "one"}},
    )


async def test_a_simple_request_is_filled_in(simple: Site, comfyui: StandinComfyUI) -> None:
    body = {"prompt": "cat", "width": 24}
    async with simple.client.post(simple.url("/v1/image"), json=body) as response:
        assert read_png(await response.read()).size == (24, 8)
        assert "cat_00001_.png" in response.headers["Content-Disposition"]
    assert list(comfyui.prompts[0]) == ["prompt"]


async def test_a_workflow_is_passed_on_as_it_is(simple: Site, comfyui: StandinComfyUI) -> None:
    body = {"prompt": picture(32), "client_id": "me", "extra_data": {"a": 1}}
    async with simple.client.post(simple.url("/v1/image"), json=body) as response:
        assert read_png(await response.read()).size == (32, 8)
    assert comfyui.prompts == [body]


async def test_a_body_that_is_a_workflow_itself_is_not_filled_in(
    simple: Site, comfyui: StandinComfyUI
) -> None:
    async with simple.client.post(simple.url("/v1/image"), json=picture(40)) as response:
        assert read_png(await response.read()).size == (40, 8)
    assert comfyui.prompts == [{"prompt": picture(40)}]


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"width": "24"}', "'width' must be a number."),
        (b'{"widht": 24}', "The workflow has no place for 'widht'; did you mean 'width'?"),
        (b"cat", "The body must be JSON."),
        (b"", "The body must be JSON."),
        (b'{"width": NaN}', "The body must be JSON."),
        (b"[" * 100_000, "The body must be JSON."),
        (b"[1]", "The body must be a JSON object."),
        (b'{"nodes": [], "links": []}', EDITORS),
    ],
)
async def test_what_cannot_be_filled_in_is_refused_before_it_waits(
    simple: Site, comfyui: StandinComfyUI, body: bytes, detail: str
) -> None:
    await simple.broker.hold()
    async with simple.client.post(simple.url("/v1/image"), data=body) as response:
        assert response.status == 400
        document = await response.json(content_type="application/problem+json")
    assert document["detail"] == detail
    assert not simple.broker.asked


async def test_a_simple_request_is_short(simple: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "MAX_SIMPLE_BODY_BYTES", 1000)
    async with simple.client.post(simple.url("/v1/image"), data=b" " * 2000) as response:
        assert response.status == 413
