"""``POST /v1/images/generations`` in OpenAI's shape, for a model that is a workflow of the user's.

A consumer that has workflows has nothing else of OpenAI's, save for what is in its ``paths``.

Each of the ``n`` images is one run of the workflow, all of them one job; a workflow with a place
called ``n`` makes them in one run. ``prompt``, and ``width`` and ``height`` by ``size``, go into
the places of these names; so does any other field that has a place, such as ``seed``. What OpenAI
defines and the workflow has no place for (``quality``, ``style``…) is ignored, as other servers
of this interface do; any other field is an error.

Source: OpenAI API reference, "Create image".
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from mgpu.api.deps import DEPS
from mgpu.api.leaseholder import Leaseholder
from mgpu.api.routes import Upstream
from mgpu.config.openai import IMAGES
from mgpu.config.workflow import Workflow
from mgpu.errors import BadRequest, ConsumerFailed, UnknownModel, UnknownRoute

MAX_IMAGES = 10
_SIZE = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")
_AUTO = "auto"
_READ_HERE = frozenset({"model", "n", "size", "response_format"})
_IGNORED = frozenset(
    {
        "background",
        "moderation",
        "output_compression",
        "output_format",
        "partial_images",
        "quality",
        "style",
        "user",
    }
)
_MIB = 1 << 20


def workflow_for(upstream: Upstream, path: str, model: str) -> Workflow | None:
    """The workflow that a model of this consumer is: the one of its name, or the only one.

    None: it is one of a consumer that has this path of OpenAI's itself. Raises ``UnknownModel`` or
    ``UnknownRoute`` with the workflows there are, where nobody would have an answer.
    """
    workflows = upstream.workflows
    if path == IMAGES and model in workflows:
        return workflows[model]
    if path == IMAGES and len(workflows) == 1:
        return next(iter(workflows.values()))
    if not workflows or upstream.has(path):
        return None
    there_are = f"{'workflow' if len(workflows) == 1 else 'workflows'} {', '.join(workflows)}"
    if path == IMAGES:
        raise UnknownModel(f"{upstream.name} has no workflow {model!r}, but the {there_are}.")
    raise UnknownRoute(f"{upstream.name} has no {path}: its {there_are} can be had at {IMAGES}.")


async def generate(
    request: web.Request, upstream: Upstream, workflow: Workflow, document: Mapping[str, Any]
) -> web.StreamResponse:
    """Run the workflow for a request whose whole body is ``document``, as one job.

    Raises ``BadRequest`` for what the workflow cannot do, and what a job raises.
    """
    count, fields = _asked(workflow, document)
    runs = 1 if "n" in workflow.fields else count
    holder = Leaseholder(request, upstream, drop_when_left=True)
    url = upstream.url(workflow.path, "")

    async def work() -> web.StreamResponse:
        images: list[bytes] = []
        left_bytes = request.app[DEPS].config.server.max_body_mib * _MIB
        for number in range(runs):
            graph = workflow.filled(_varied(fields, number))
            reply = await holder.ask(holder.send(url, {"prompt": graph}))
            ending = await holder.completed(reply)
            if ending is None:
                return holder.results.response(reply)
            if ending.failed:
                return holder.results.failure(ending)
            for path in (ending.files or ())[: count - len(images) if runs == 1 else 1]:
                _, content = await holder.file(path, left_bytes)
                left_bytes -= len(content)
                images.append(content)
        if not images:
            raise ConsumerFailed(f"{upstream.name} made no image.")
        data = [{"b64_json": base64.b64encode(image).decode()} for image in images]
        return holder.results.json({"created": int(time.time()), "data": data})

    return await holder.run(work)


def _asked(workflow: Workflow, document: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """How many images, and what goes into the places; tried out once, so that errors come early."""
    if not isinstance(document.get("prompt"), str):
        raise BadRequest("'prompt' must be text.")
    if document.get("stream"):
        raise BadRequest("'stream' is not supported for a workflow.")
    _check_format(document.get("response_format"))
    count = document.get("n")
    count = 1 if count is None else count
    if type(count) is not int or not 1 <= count <= MAX_IMAGES:
        raise BadRequest(f"'n' must be a whole number from 1 to {MAX_IMAGES}.")
    fields = {
        name: value
        for name, value in document.items()
        if value is not None
        and name not in _READ_HERE | {"stream"}
        and (name not in _IGNORED or name in workflow.fields)
    }
    fields |= _size(document.get("size"))
    if "n" in workflow.fields:
        fields["n"] = count
    workflow.filled(fields)
    return count, fields


def _varied(fields: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    """The fields for one of several images: with the same seed they would all be the same."""
    return {**fields, "seed": fields["seed"] + number} if "seed" in fields else fields


def _check_format(response_format: Any) -> None:
    if response_format not in {None, "b64_json"}:
        raise BadRequest("'response_format' must be b64_json: the broker keeps no images at a URL.")


def _size(size: Any) -> dict[str, int]:
    if size is None or size == _AUTO:
        return {}
    match = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if match is None:
        raise BadRequest("'size' must be WIDTHxHEIGHT, such as 1024x1024, or auto.")
    return {"width": int(match[1]), "height": int(match[2])}
