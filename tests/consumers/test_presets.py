"""Every preset against a service that answers as the real one does, through a real socket."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from mgpu.consumers.completion import Completion
from mgpu.consumers.http import HttpController
from mgpu.consumers.models import served_models
from mgpu.errors import Forbidden, UnloadFailed
from mgpu.ports import Placement
from tests.support.presets import Site, Start, built_in, configured
from tests.support.servers import BadServer, serving
from tests.support.services.base import Service
from tests.support.services.catalogue import SERVICES
from tests.support.services.images import (
    InvokeAi,
)
from tests.support.services.language import (
    SgLang,
    TabbyApi,
)
from tests.support.services.plain import SdServer, WhisperAsr
from tests.support.services.speech import Speaches

NOWHERE = Placement()


def having(key: str) -> list[type[Service]]:
    """The services whose preset, with all its parameters, has a key."""
    return [kind for kind in SERVICES if key in built_in(kind.preset).consumer]


def names(kinds: list[type[Service]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: kind.preset)


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


@names(having("load"))
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


@names(having("models"))
async def test_it_names_the_models_that_it_serves(
    sites: Start, kind: type[Service], session: aiohttp.ClientSession
) -> None:
    site = await sites(kind)
    site.service.put_in()
    before = set(site.service.held)

    assert set(await served_models(site.config, session) or ()) == set(kind.models_told)

    assert site.service.held == before
    assert site.service.changes == []
    assert site.service.broken is None


@names(having("models"))
async def test_it_names_nothing_else_while_it_holds_nothing(
    sites: Start, kind: type[Service], session: aiohttp.ClientSession
) -> None:
    site = await sites(kind)
    site.service.held.clear()

    named = await served_models(site.config, session)

    assert named is not None
    assert set(named) in ({*()}, {*kind.models_told})
    assert not site.service.held, "asking loads nothing"


@names(having("models"))
async def test_asking_for_its_models_is_no_activity(sites: Start, kind: type[Service]) -> None:
    site = await sites(kind)

    assert not site.upstream.is_activity("GET", site.config.models.path)


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
    completion = Completion("x", site.service.url, declared, session, headers={})
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
    declared = site.config.completion
    completion = Completion("x", site.service.url, declared, session, headers={})
    async with session.post(f"{site.service.url}/api/v1/queue/default/enqueue_batch") as answer:
        work = completion.work_in(await answer.read())
    assert work is not None
    unwanted = asyncio.Event()
    unwanted.set()

    async with asyncio.timeout(5):
        await completion.ended(work, unwanted)

    assert {"batch_ids": ["b"]} in site.service.bodies
