from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from mgpu.api import catalogue
from mgpu.api.app import reconfigure
from mgpu.api.deps import DEPS
from mgpu.config.model import Config
from tests.api.conftest import Site, Sites


class Teller:
    """A consumer that tells its models, and counts who asks."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.asked = 0
        self.askings = asyncio.Queue[None]()
        self.status = 200

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path != "/v1/models":
            return web.Response(text="served")
        self.asked += 1
        self.askings.put_nowait(None)
        data = [{"id": name} for name in self.names]
        return web.json_response({"object": "list", "data": data}, status=self.status)

    async def was_asked(self, times: int) -> None:
        """Return when it was, once more for each call."""
        async with asyncio.timeout(5):
            for _ in range(times):
                await self.askings.get()

    async def section(self, sites: Sites) -> dict[str, Any]:
        return {"url": await sites.upstream(self.answer), "models": {}}


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asks all the time, so that nobody has to wait for it."""
    for name in ("ROUND_S", "REFRESH_S", "_AGAIN_S"):
        monkeypatch.setattr(catalogue, name, 0.01)


async def listed(site: Site) -> list[str]:
    async with site.client.get(site.url("/v1/models")) as response:
        return [each["id"] for each in (await response.json())["data"]]


async def until_listed(site: Site, *names: str) -> None:
    async with asyncio.timeout(5):
        while True:
            if await listed(site) == list(names):
                return
            await asyncio.sleep(0.01)


async def served_by(site: Site, model: str) -> str:
    async with site.client.post(site.url("/v1/responses"), json={"model": model}) as response:
        assert response.status == 200, await response.text()
        return response.headers["X-MGPU-Consumer"]


async def refused(site: Site, model: str) -> str:
    async with site.client.post(site.url("/v1/responses"), json={"model": model}) as response:
        assert response.status == 404
        detail: str = (await response.json(content_type=None))["detail"]
        return detail


async def test_what_one_consumer_tells_leads_to_it(sites: Sites) -> None:
    chat = Teller("small", "big")
    site = await sites.broker(others={"chat": await chat.section(sites)}, models={"voice": "tts"})

    assert await served_by(site, "big") == "chat"
    await until_listed(site, "voice", "small", "big")
    assert "Did you mean 'small'?" in await refused(site, "smal")


async def test_a_name_without_a_tag_is_the_latest_unless_it_is_known_itself(sites: Sites) -> None:
    ollama, other = Teller("qwen:latest", "llava:latest", "llava:7b"), Teller("llava")
    site = await sites.broker(
        others={"ollama": await ollama.section(sites), "other": await other.section(sites)}
    )

    assert await served_by(site, "qwen") == "ollama"
    assert await served_by(site, "qwen:latest") == "ollama"
    assert await served_by(site, "llava") == "other"
    assert await served_by(site, "llava:latest") == "ollama"
    assert "No consumer" in await refused(site, "qwen:7b")
    async with site.client.get(site.url("/v1/models/qwen")) as response:
        assert (await response.json())["id"] == "qwen:latest"


async def test_a_latest_that_two_tell_belongs_to_nobody(sites: Sites) -> None:
    one, two = Teller("both:latest"), Teller("both:latest", "two")
    site = await sites.broker(
        others={"one": await one.section(sites), "two": await two.section(sites)}
    )
    await until_listed(site, "two")
    assert await refused(site, "both") == (
        "The model 'both:latest' is served by one and two: say whose it is in models."
    )


async def test_a_model_that_is_new_there_is_found_when_it_is_wanted(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "ROUND_S", 60.0)
    chat = Teller()
    site = await sites.broker(others={"chat": await chat.section(sites)})
    assert "No consumer" in await refused(site, "new")

    chat.names = ["new"]
    await asyncio.sleep(0.02)

    assert await served_by(site, "new") == "chat"


async def test_who_asks_for_nonsense_makes_nobody_be_asked_all_the_time(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ROUND_S", "REFRESH_S", "_AGAIN_S"):
        monkeypatch.setattr(catalogue, name, 60.0)
    chat = Teller()
    site = await sites.broker(others={"chat": await chat.section(sites)})

    await asyncio.gather(*(refused(site, f"nonsense {n}") for n in range(20)))

    assert chat.asked == 1


async def test_what_was_told_stands_while_the_consumer_is_away(sites: Sites) -> None:
    chat = Teller("small")
    site = await sites.broker(others={"chat": await chat.section(sites)})
    await until_listed(site, "small")

    chat.status = 503
    await chat.was_asked(chat.asked + 3)

    assert await listed(site) == ["small"]
    chat.status, chat.names = 200, ["other"]
    await until_listed(site, "other")


async def test_a_consumer_that_is_not_well_is_not_asked(sites: Sites) -> None:
    chat = Teller("small")
    site = await sites.broker(others={"chat": await chat.section(sites)})
    await until_listed(site, "small")
    site.broker.unwell = frozenset({"chat"})
    await refused(site, "none")

    asked = chat.asked
    for _ in range(5):
        await refused(site, "none")

    assert chat.asked == asked
    assert await listed(site) == ["small"]


async def test_a_model_that_two_tell_belongs_to_nobody_and_is_said(sites: Sites) -> None:
    one, two = Teller("both", "one"), Teller("both")
    site = await sites.broker(
        others={"one": await one.section(sites), "two": await two.section(sites)}
    )
    await until_listed(site, "one")
    assert await refused(site, "both") == (
        "The model 'both' is served by one and two: say whose it is in models."
    )

    async with site.client.get(site.url("/api/status")) as response:
        problems = (await response.json())["problems"]
    async with site.client.get(site.url("/readyz")) as response:
        assert response.status == 200
    assert problems == ["The model 'both' is served by one and two: say whose it is in models."]


async def test_the_configuration_wins_over_what_is_told(sites: Sites) -> None:
    one, two = Teller("both"), Teller("both")
    site = await sites.broker(
        others={"one": await one.section(sites), "two": await two.section(sites)},
        models={"both": "two"},
    )
    await until_listed(site, "both")
    await asyncio.gather(one.was_asked(2), two.was_asked(2))

    assert await served_by(site, "both") == "two"
    async with site.client.get(site.url("/api/status")) as response:
        assert (await response.json())["problems"] == []


def changed(site: Site, **sections: Any) -> Config:
    """The configuration with other sections."""
    document = site.app[DEPS].config.model_dump(mode="json") | sections
    return Config.model_validate(document)


async def test_another_configuration_has_other_models_from_the_next_request_on(
    sites: Sites,
) -> None:
    chat, other = Teller("small"), Teller("new")
    sections = {"chat": await chat.section(sites), "other": await other.section(sites)}
    site = await sites.broker(
        others={"chat": sections["chat"], "other": {"url": sections["other"]["url"]}}
    )
    await until_listed(site, "small")

    reconfigure(site.app, changed(site, consumers=sections, models={"voice": "other"}, routes={}))
    assert await served_by(site, "voice") == "other"
    await until_listed(site, "voice", "small", "new")

    without = {"other": sections["other"]}
    reconfigure(site.app, changed(site, consumers=without, models={}, routes={}))
    assert await listed(site) == ["new"]
    assert "small" in await refused(site, "small")


async def test_what_is_told_under_an_older_configuration_is_not_believed(sites: Sites) -> None:
    told, asked = asyncio.Event(), asyncio.Event()

    async def answer(_request: web.Request) -> web.StreamResponse:
        asked.set()
        await told.wait()
        return web.json_response({"data": [{"id": "late"}]})

    section = {"url": await sites.upstream(answer), "models": {}}
    site = await sites.broker(others={"chat": section})
    await asked.wait()

    reconfigure(site.app, changed(site, consumers={"tts": {"url": section["url"]}}))
    told.set()
    assert "late" in await refused(site, "late")
    assert await listed(site) == []


async def test_an_empty_list_takes_nothing_back(sites: Sites) -> None:
    chat = Teller("loaded")
    site = await sites.broker(others={"chat": await chat.section(sites)})
    await until_listed(site, "loaded")

    chat.names = []
    await chat.was_asked(chat.asked + 3)

    assert await listed(site) == ["loaded"]


PATH = "/v1/responses"
"""What ``served_by`` and ``refused`` ask for."""
HAS_IT = {PATH: PATH}


async def test_an_unknown_model_is_that_of_the_only_one_whose_models_are_not_known(
    sites: Sites,
) -> None:
    chat, mute = Teller("small"), Teller()
    site = await sites.broker(
        others={
            "chat": {**await chat.section(sites), "paths": HAS_IT},
            "mute": {"url": await sites.upstream(mute.answer), "paths": HAS_IT},
            "elsewhere": {"url": "http://127.0.0.1:9", "paths": {"/v1/rerank": "/rerank"}},
        }
    )

    assert await served_by(site, "anything") == "mute"
    assert await served_by(site, "small") == "chat"
    async with site.client.get(site.url("/v1/models/anything")) as response:
        assert response.status == 404


async def test_of_several_whose_models_are_not_known_none_is_chosen(sites: Sites) -> None:
    mute = {"url": "http://127.0.0.1:9", "paths": HAS_IT}
    site = await sites.broker(others={"one": mute, "two": mute}, models={"voice": "one"})

    assert await refused(site, "voicee") == (
        "No consumer serves the model 'voicee'. Did you mean 'voice'? /v1/responses is served by "
        "one and two, whose models are not known: say whose it is in models."
    )


async def test_one_that_has_not_told_yet_is_tried_where_a_job_would_find_it(sites: Sites) -> None:
    chat = Teller()  # it names what is loaded, and nothing is
    site = await sites.broker(others={"chat": {**await chat.section(sites), "paths": HAS_IT}})
    assert await served_by(site, "first") == "chat"

    chat.names = ["first"]
    await until_listed(site, "first")
    assert await refused(site, "second") == (
        "No consumer serves the model 'second'. GET /v1/models lists those there are."
    )


async def test_one_that_the_broker_can_start_is_tried_before_it_has_told(sites: Sites) -> None:
    chat = Teller()
    section = {**await chat.section(sites), "paths": HAS_IT, "systemd_unit": "chat.service"}
    site = await sites.broker(others={"chat": section})
    site.broker.unwell = frozenset({"chat"})

    assert await served_by(site, "first") == "chat"


async def test_one_that_could_not_be_asked_and_that_nobody_can_start_is_named(
    sites: Sites,
) -> None:
    chat = {"url": "http://127.0.0.1:9", "models": {}, "paths": HAS_IT}
    site = await sites.broker(others={"chat": chat})
    site.broker.unwell = frozenset({"chat"})

    assert await refused(site, "first") == (
        "No consumer serves the model 'first'. chat could not be asked yet."
    )
