from __future__ import annotations

import json

import pytest
from aiohttp import web

from mgpu import errors
from mgpu.api import problems
from tests.api.conftest import Sites

CONTRACT = {
    "bad-request": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "unknown-route": 404,
    "unknown-model": 404,
    "unknown-consumer": 404,
    "unknown-job": 404,
    "body-too-large": 413,
    "unsupported-media-type": 415,
    "wrong-host": 421,
    "queue-full": 429,
    "consumer-failed": 502,
    "load-failed": 502,
    "vram-unavailable": 503,
    "gpu-unhealthy": 503,
    "consumer-cooldown": 503,
    "paused": 503,
    "draining": 503,
    "wait-expired": 504,
    "job-timeout": 504,
    "never-fits": 507,
    "storage-full": 507,
}
TRY_AGAIN = [
    "queue-full",
    "vram-unavailable",
    "gpu-unhealthy",
    "consumer-cooldown",
    "paused",
    "draining",
    "wait-expired",
    "consumer-failed",
    "load-failed",
]


@pytest.mark.parametrize(("code", "status"), CONTRACT.items())
def test_every_promised_kind_has_its_status(code: str, status: int) -> None:
    response = problems.problem(errors.BY_CODE[code]("What and where."))

    assert response.status == status
    assert response.content_type == "application/problem+json"
    assert isinstance(response.body, bytes)
    document = json.loads(response.body)
    assert document["type"] == f"urn:mgpu:{code}"
    assert document["status"] == status
    assert document["detail"] == "What and where."
    assert document["title"]


def test_a_title_is_the_kind_in_words() -> None:
    for code, title in (
        ("gpu-unhealthy", "GPU unhealthy"),
        ("vram-unavailable", "VRAM unavailable"),
        ("queue-full", "Queue full"),
    ):
        response = problems.problem(errors.BY_CODE[code]("What and where."))
        assert isinstance(response.body, bytes)
        assert json.loads(response.body)["title"] == title


def test_a_client_that_is_there_is_never_told_that_it_has_left() -> None:
    assert problems.problem(errors.JobCancelled()).status == 409
    assert "Retry-After" not in problems.problem(errors.JobCancelled()).headers


@pytest.mark.parametrize("code", errors.BY_CODE)
def test_no_error_is_without_a_status(code: str) -> None:
    assert 400 <= problems.problem(errors.BY_CODE[code]()).status <= 599


@pytest.mark.parametrize(("wait_s", "header"), [(0.01, "1"), (1.0, "1"), (1.2, "2"), (30.0, "30")])
def test_retry_after_is_whole_seconds_rounded_up(wait_s: float, header: str) -> None:
    response = problems.problem(errors.QueueFull(retry_after_s=wait_s))

    assert response.headers["Retry-After"] == header


@pytest.mark.parametrize("code", TRY_AGAIN)
def test_retry_after_is_there_wherever_trying_again_can_help(code: str) -> None:
    assert int(problems.problem(errors.BY_CODE[code]()).headers["Retry-After"]) >= 1


@pytest.mark.parametrize("code", ["never-fits", "bad-request", "unknown-route", "forbidden"])
def test_retry_after_is_not_there_where_it_cannot(code: str) -> None:
    assert "Retry-After" not in problems.problem(errors.BY_CODE[code]()).headers


def test_a_missing_key_is_answered_with_the_scheme_to_use() -> None:
    response = problems.problem(errors.Unauthenticated())

    assert response.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize("error", [errors.QueueFull, errors.NeverFits, errors.LoadFailed])
async def test_a_refused_job_is_told_so(sites: Sites, error: type[errors.MgpuError]) -> None:
    site = await sites.broker()
    site.broker.refuse = error("Said the broker.", retry_after_s=7.5)

    async with site.client.post(site.url("/v1/tts"), data=b"x") as response:
        assert response.status == problems.problem(error()).status
        assert response.headers["Retry-After"] == "8"
        document = await response.json(content_type="application/problem+json")
        assert document["detail"] == "Said the broker."


async def test_aiohttps_own_errors_are_problems_too(sites: Sites) -> None:
    site = await sites.broker()

    async with site.client.post(site.url("/api/status")) as response:
        assert response.status == 405
        assert response.headers["Allow"] == "GET,HEAD"
        document = await response.json(content_type="application/problem+json")
        assert document["type"] == "urn:mgpu:method-not-allowed"


async def test_an_error_that_says_nothing_of_itself_is_a_bug_and_its_detail_stays_inside(
    sites: Sites, caplog: pytest.LogCaptureFixture
) -> None:
    site = await sites.broker()
    site.broker.refuse = errors.MgpuError("inner secret")

    async with site.client.get(site.url("/v1/tts")) as response:
        assert response.status == 500
        assert "inner secret" not in await response.text()


async def test_an_unknown_status_of_aiohttp_is_internal() -> None:
    assert problems.http_problem(web.HTTPNotImplemented()).status == 500
