"""The page at ``/``: says what this is and where to look. It loads nothing and runs nothing."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

from aiohttp import web

_HTML = resources.files("mgpu.api").joinpath("page.html").read_text(encoding="utf-8")


def _policy(html: str) -> str:
    """A Content-Security-Policy under which the page's own style works and nothing else."""
    styles = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    hashes = (
        base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() for style in styles
    )
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return (
        f"default-src 'none'; style-src {allowed}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


_HEADERS = {
    "Content-Security-Policy": _policy(_HTML),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


async def page(_request: web.Request) -> web.Response:
    """The page."""
    return web.Response(text=_HTML, content_type="text/html", headers=_HEADERS)
