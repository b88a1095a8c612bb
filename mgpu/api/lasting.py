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
from mgpu.api.leaseholder import Leaseholder
from mgpu.api.routes import Upstream
from mgpu.config.workflow import Workflow


async def answered_at_once(
    request: web.Request, upstream: Upstream, url: URL
) -> web.StreamResponse:
    """Pass the consumer's own answer on; the job ends when its work does."""
    upstream.check_allowed(request.method, url.path)
    holder = Leaseholder(request, upstream, drop_when_left=False)

    async with forward.receive(request) as body:

        async def work() -> web.StreamResponse:
            reply = await holder.ask(holder.pass_on(url, body))
            response = holder.results.response(reply)
            holder.tell(response)
            await holder.completed(reply)
            return response

        response = await holder.run(work)
    await proxy.start(request, response, upstream.name)
    return response


async def answered_with_result(
    request: web.Request, upstream: Upstream, url: URL, workflow: Workflow | None
) -> web.StreamResponse:
    """Answer with what came of the work: its first file, or all of them when JSON is asked for.

    With a ``workflow``, a body whose ``prompt`` is not a workflow itself is filled into that one.
    """
    upstream.check_allowed(request.method, url.path)
    holder = Leaseholder(request, upstream, drop_when_left=True)

    async def work(asked: Awaitable[aiohttp.ClientResponse]) -> web.StreamResponse:
        reply = await holder.ask(asked)
        ending = await holder.completed(reply)
        return holder.results.response(reply) if ending is None else await holder.result(ending)

    async with forward.receive(request) as body:
        if workflow is None:
            return await holder.run(lambda: work(holder.pass_on(url, body)))
        document = await json_object(body)
        if not isinstance(document.get("prompt"), dict):
            document = {"prompt": workflow.filled(document)}
        return await holder.run(lambda: work(holder.send(url, document)))
