"""OpenAI's routes: the consumer is found by the ``model`` of the request, in JSON or in a form.

The body goes on as it came, and the answer comes back as it is: Server-Sent Events as they are
sent, audio, errors of the consumer. A path in ``routes`` is more than a model: it is served by the
consumer that it names, whatever model the request asks for.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from mgpu.api import forward, images, jobs
from mgpu.api.body import json_object
from mgpu.api.catalogue import CATALOGUE, Catalogue, Model
from mgpu.api.modelname import ModelFinder
from mgpu.api.routes import ROUTES, TARGET


def _unless_routed(handler: Handler) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        routed = request.app[ROUTES].job(request[TARGET])
        if routed is not None:
            return await jobs.run_routed(request, *routed)
        return await handler(request)

    return handle


@_unless_routed
async def by_model(request: web.Request) -> web.StreamResponse:
    """A job for the consumer that serves the request's model."""
    target, routes = request[TARGET], request.app[ROUTES]
    finder = ModelFinder(request)
    async with forward.receive(request, finder) as body:
        path = target.below(0)
        model = await request.app[CATALOGUE].wanted(await finder.name(), path)
        upstream = routes.upstream(model.consumer)
        workflow = images.workflow_for(upstream, path, model.name)
        if workflow is not None:
            document = await json_object(body)
            return await images.generate(request, upstream, workflow, document)
        url = upstream.openai_url(path, target.query)
        return await forward.run(request, upstream, url, body)


@_unless_routed
async def models(request: web.Request) -> web.StreamResponse:
    """Every model, as OpenAI lists them."""
    catalogue = request.app[CATALOGUE]
    listed = [_document(catalogue, each) for each in catalogue.models()]
    return web.json_response({"object": "list", "data": listed})


@_unless_routed
async def model(request: web.Request) -> web.StreamResponse:
    """One model."""
    catalogue = request.app[CATALOGUE]
    name = request[TARGET].below(2)[1:]
    return web.json_response(_document(catalogue, await catalogue.wanted(name)))


def _document(catalogue: Catalogue, model: Model) -> dict[str, Any]:
    # When a model was made is not known; tools sort by it all the same.
    created = catalogue.began_at
    return {"id": model.name, "object": "model", "created": created, "owned_by": model.consumer}
