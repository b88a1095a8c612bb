"""The two shapes of a job whose work goes on after the consumer has answered.

In the first, ``answered_at_once``, the client gets the consumer's own answer and nothing that it
does later ends the job. In the second, ``answered_with_result``, it waits for what comes of the
work, so a client that leaves has the work dropped.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from mgpu.api import forward, proxy
from mgpu.api.body import RequestBody, json_object, parsed, short
from mgpu.api.leaseholder import Leaseholder
from mgpu.api.routes import Upstream
from mgpu.config.workflow import Workflow, is_graph, is_of_editor
from mgpu.errors import BadRequest


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

    A body that is a workflow itself is sent as one. Any other is passed on as it came, or with a
    ``workflow`` filled into that, unless its ``prompt`` is a workflow.

    Raises ``BadRequest`` for a workflow in the editor's format.
    """
    upstream.check_allowed(request.method, url.path)
    holder = Leaseholder(request, upstream, drop_when_left=True)

    async def work(asked: Awaitable[aiohttp.ClientResponse]) -> web.StreamResponse:
        reply = await holder.ask(asked)
        ending = await holder.completed(reply)
        return holder.results.response(reply) if ending is None else await holder.result(ending)

    async with forward.receive(request) as body:
        document = await _looked_at(body) if workflow is None else await json_object(body)
        _refuse_the_editors(document)
        if is_graph(document):
            document = {"prompt": document}
        elif workflow is None:
            return await holder.run(lambda: work(holder.pass_on(url, body)))
        elif not isinstance(document.get("prompt"), dict):
            document = {"prompt": workflow.filled(document)}
        return await holder.run(lambda: work(holder.send(url, document)))


async def _looked_at(body: RequestBody) -> dict[str, Any]:
    """The object that a body holds, empty where it holds none or is too long to be looked at."""
    content = await short(body)
    try:
        document = None if content is None else parsed(content)
    except ValueError:
        document = None  # the consumer says itself what is wrong with it
    return document if isinstance(document, dict) else {}


def _refuse_the_editors(document: dict[str, Any]) -> None:
    if is_of_editor(document) or is_of_editor(document.get("prompt")):
        raise BadRequest(
            "This is a workflow as ComfyUI's editor saves it. Export it in API format: "
            "in ComfyUI's menu, Export (API)."
        )
