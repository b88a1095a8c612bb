from __future__ import annotations

import base64
import hashlib
import re

from tests.api.conftest import Sites


async def test_the_page_says_what_this_is_and_where_to_look(sites: Sites) -> None:
    site = await sites.broker()

    async with site.client.get(site.url("/")) as response:
        assert response.status == 200
        assert response.content_type == "text/html"
        html = await response.text()

    assert "GPU broker" in html
    for path in re.findall(r'href="([^"]*)"', html):
        async with site.client.get(site.url(path)) as response:
            assert response.status == 200, path
    assert {"/api/status", "/metrics"} <= set(re.findall(r'href="([^"]*)"', html))


async def test_the_page_loads_and_runs_nothing_from_anywhere(sites: Sites) -> None:
    site = await sites.broker()

    async with site.client.get(site.url("/")) as response:
        policy = response.headers["Content-Security-Policy"]
        html = await response.text()

    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r"<script|<img|<link|<iframe|url\(|@import|\bon\w+=|\bstyle=|//", html)
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy
