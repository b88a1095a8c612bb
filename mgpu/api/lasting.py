"""The two shapes of a job whose work goes on after the consumer has answered.

In the first, ``answered_at_once``, the client gets the consumer's own answer and nothing that it
does later ends the job. In the second, ``answered_with_result``, it waits for what comes of the
work, so a client that leaves has the work dropped.
"""

from __future__ import annotations

from collections.abc import Awaitable

import aiohttp
from aiohttp import web
from yarl import URL

from mgpu.api import forward, proxy
from mgpu.api.body import json_object
from mgpu.api.keeper import Keeper
from mgpu.api.routes import Upstream
from mgpu.config.workflow import Workflow


async def answered_at_once(
    request: web.Request, upstream: Upstream, url: URL
) -> web.StreamResponse:
    """Pass the consumer's own answer on; the job ends when its work does."""
    upstream.check_allowed(request.method, url.path)
    keeper = Keeper(request, upstream, drop_when_left=False)

    async with forward.receive(request) as body:

        async def work() -> web.StreamResponse:
            reply = await keeper.ask(keeper.pass_on(url, body))
            response = keeper.results.response(reply)
            keeper.tell(response)
            await keeper.completed(reply)
            return response

        response = await keeper.run(work)
    await proxy.start(request, response, upstream.name)
    return response


async def answered_with_result(
    request: web.Request, upstream: Upstream, url: URL, workflow: Workflow | None
) -> web.StreamResponse:
    """Answer with what came of the work: its first file, or all of them when JSON is asked for.

    With a ``workflow``, a body whose ``prompt`` is not a workflow itself is filled into that one.
    """
    upstream.check_allowed(request.method, url.path)
    keeper = Keeper(request, upstream, drop_when_left=True)

    async def work(asked: Awaitable[aiohttp.ClientResponse]) -> web.StreamResponse:
        reply = await keeper.ask(asked)
        ending = await keeper.completed(reply)
        return keeper.results.response(reply) if ending is None else await keeper.result(ending)

    async with forward.receive(request) as body:
        if workflow is None:
            return await keeper.run(lambda: work(keeper.pass_on(url, body)))
        document = await json_object(body)
        if not isinstance(document.get("prompt"), dict):
            document = {"prompt": workflow.filled(document)}
        return await keeper.run(lambda: work(keeper.send(url, document)))
