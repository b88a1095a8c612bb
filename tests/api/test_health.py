from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Counter

from tests.api.conftest import Sites


async def test_alive(sites: Sites) -> None:
    site = await sites.broker()

    async with site.client.get(site.url("/healthz")) as response:
        assert (response.status, await response.json()) == (200, {"status": "ok"})


async def test_ready(sites: Sites) -> None:
    site = await sites.broker()

    async with site.client.get(site.url("/readyz")) as response:
        assert (response.status, await response.json()) == (200, {"ready": True, "problems": []})


async def test_not_ready_says_why_while_it_is_alive(sites: Sites) -> None:
    site = await sites.broker()
    site.broker.ready_problems = ("draining", "no GPU")

    async with site.client.get(site.url("/readyz")) as response:
        assert response.status == 503
        assert await response.json() == {"ready": False, "problems": ["draining", "no GPU"]}
    async with site.client.get(site.url("/healthz")) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("accept", "content_type", "end"),
    [
        (None, "text/plain; version=0.0.4", "2.0\n"),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text", "# EOF\n"),
    ],
)
async def test_metrics_come_in_the_format_that_is_asked_for(
    sites: Sites, accept: str | None, content_type: str, end: str
) -> None:
    registry = CollectorRegistry()
    Counter("things", "Things.", registry=registry).inc(2)
    site = await sites.broker(registry=registry)

    async with site.client.get(
        site.url("/metrics"), headers={"Accept": accept} if accept else {}
    ) as response:
        assert response.headers["Content-Type"].startswith(content_type)
        text = await response.text()
    assert "things_total 2.0" in text
    assert text.endswith("# EOF\n") == (end == "# EOF\n")
