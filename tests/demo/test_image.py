from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mgpu.demo.catalogue import Kind
from tests.support.demo_service import DemoService, demo_service
from tests.support.png import read_png

NIGHT = {"prompt": "a city at night", "width": 96, "height": 64, "seed": 1}
FREE = {"unload_models": True, "free_memory": True}


@pytest.fixture
async def image(tmp_path: Path) -> AsyncIterator[DemoService]:
    async with demo_service(Kind.IMAGE, tmp_path) as service:
        yield service


async def paint(image: DemoService, body: dict[str, object]) -> bytes:
    async with image.http.post("/prompt", json=body) as answer:
        assert answer.status == 200
        assert answer.content_type == "image/png"
        return await answer.read()


async def test_it_loads_at_its_first_job_keeps_its_weights_and_frees_them_on_request(
    image: DemoService,
) -> None:
    assert image.held_mib() == 0
    await paint(image, NIGHT)
    assert image.held_mib() == image.profile.footprint_mib
    await paint(image, NIGHT)
    assert image.held_mib() == image.profile.footprint_mib
    async with image.http.post("/free", json=FREE) as answer:
        assert answer.status == 200
    await image.holds(image.profile.residual_mib)
    await paint(image, NIGHT)
    assert image.held_mib() == image.profile.footprint_mib


async def test_pictures_have_the_asked_size_and_differ_by_prompt_and_seed(
    image: DemoService,
) -> None:
    first = await paint(image, NIGHT)
    assert read_png(first).size == (96, 64)
    assert await paint(image, NIGHT) == first
    assert await paint(image, NIGHT | {"seed": 2}) != first
    assert await paint(image, NIGHT | {"prompt": "a desert at noon"}) != first


async def test_freeing_nothing_frees_nothing(image: DemoService) -> None:
    await paint(image, NIGHT)
    async with image.http.post("/free", json={}) as answer:
        assert answer.status == 200
    async with image.http.get("/system_stats") as answer:
        (device,) = (await answer.json())["devices"]
    assert device["torch_vram_total"] == image.profile.footprint_mib * 2**20


BAD = [
    ({}, "prompt"),
    ({"prompt": 3}, "prompt"),
    ({"prompt": "x", "width": 8}, "width"),
    ({"prompt": "x", "height": 100_000}, "height"),
]


async def test_neither_questions_nor_bad_prompts_load_it(image: DemoService) -> None:
    async with image.http.get("/queue") as answer:
        assert await answer.json() == {"queue_running": [], "queue_pending": []}
    for body, named in BAD:
        async with image.http.post("/prompt", json=body) as answer:
            assert answer.status == 400
            assert (await answer.json())["error"].startswith(f"{named}: ")
    assert image.held_mib() == 0
