"""``GET /openapi.json``: this interface for tools that read OpenAPI 3.1.

Written by hand, since what matters cannot be read off handlers; a test compares its paths with the
application's.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from mgpu import __version__
from mgpu.api import headers as fields
from mgpu.api.problems import CONTENT_TYPE
from mgpu.api.routes import ROUTES
from mgpu.config.openai import PATHS

_METHODS = ("get", "post", "put", "patch", "delete")

_PROBLEM = {
    "description": "Refused or failed",
    "headers": {
        "Retry-After": {
            "description": "Seconds, wherever trying again can help",
            "schema": {"type": "integer"},
        }
    },
    "content": {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
_REST = {"name": "path", "in": "path", "required": True, "schema": {"type": "string"}}
_JOB_ID = {"name": "job", "in": "path", "required": True, "schema": {"type": "string"}}
_OF_JOB: dict[str, Any] = {"parameters": [_JOB_ID]}
_JOB_PARAMETERS = [
    {
        "name": fields.PRIORITY,
        "in": "header",
        "description": "Higher is served first",
        "schema": {"type": "integer", "minimum": -100, "maximum": 100},
    },
    {
        "name": fields.MAX_WAIT,
        "in": "header",
        "description": "Seconds to wait for the GPU at most",
        "schema": {"type": "number", "exclusiveMinimum": 0},
    },
    {
        "name": fields.IDLE_UNLOAD,
        "in": "header",
        "description": "Seconds the consumer may be idle afterwards; below 0, or never: for ever",
        "schema": {"oneOf": [{"type": "number"}, {"const": "never"}]},
    },
]
_ANSWER = {
    "name": fields.ANSWER,
    "in": "header",
    "description": "Where work goes on after the consumer's answer: answer with what comes of it",
    "schema": {"const": "result"},
}
_JOB_ANSWER = {
    "description": "The consumer's own answer, streamed",
    "headers": {
        fields.JOB: {"description": "The job's id", "schema": {"type": "string"}},
        fields.CONSUMER: {"description": "The consumer's name", "schema": {"type": "string"}},
        fields.SERVER_TIMING: {
            "description": "queue, evict, load and upstream in milliseconds",
            "schema": {"type": "string"},
        },
    },
}
_PROBLEM_SCHEMA = {
    "type": "object",
    "description": "RFC 9457",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "examples": ["urn:mgpu:queue-full"]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
}
_COMPONENTS = {
    "schemas": {"Problem": _PROBLEM_SCHEMA},
    "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
}


def _get(summary: str, media_type: str, **more: Any) -> dict[str, Any]:
    answer = {"description": summary, "content": {media_type: {}}}
    return {"get": {"summary": summary, "responses": {"200": answer, "default": _PROBLEM}, **more}}


def _delete(summary: str, *parameters: dict[str, Any]) -> dict[str, Any]:
    answer = {"description": "Done: how it stood", "content": _JSON}
    return {
        "delete": {
            "summary": summary,
            "parameters": list(parameters),
            "responses": {"200": answer, "default": _PROBLEM},
        }
    }


def _post(
    summary: str, answer: str, *parameters: dict[str, Any], schema: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {
        "post": {
            "summary": summary,
            "parameters": list(parameters),
            "requestBody": {"content": {"application/json": {"schema": schema or _OBJECT}}},
            "responses": {
                "200": {"description": answer, "content": _JSON},
                "default": _PROBLEM,
            },
        }
    }


def _action(summary: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return _post(summary, "Done: the consumer as in /api/status", _NAME, schema=schema)


def _job(summary: str, *parameters: dict[str, Any]) -> dict[str, Any]:
    operation = {
        "summary": summary,
        "parameters": [*parameters, *_JOB_PARAMETERS],
        "responses": {"200": _JOB_ANSWER, "default": _PROBLEM},
    }
    return dict.fromkeys(_METHODS, operation)


_BY_MODEL = "A job for the consumer that serves the request's model, as at OpenAI"
_OBJECT: dict[str, Any] = {"type": "object"}
_JSON: dict[str, Any] = {"application/json": {"schema": _OBJECT}}
_LOAD: dict[str, Any] = {
    "type": "object",
    "properties": {
        "body": {
            "type": "object",
            "description": "Merged over the configured body of the load request (RFC 7396)",
        }
    },
    "additionalProperties": False,
}
_OPEN: list[dict[str, Any]] = [{}]

_MODEL = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}

_PATHS = {
    "/": _get("A page that says what this is", "text/html"),
    "/healthz": _get("Liveness", "application/json", security=_OPEN),
    "/readyz": _get(
        "Readiness, with reasons; 503 when not ready", "application/json", security=_OPEN
    ),
    "/metrics": _get("Prometheus metrics", "text/plain"),
    "/openapi.json": _get("This document", "application/json"),
    "/api/status": _get("GPUs, consumers, queue and lock", "application/json"),
    "/api/events": _get("Everything that happens, as Server-Sent Events", "text/event-stream"),
    "/api/jobs": _get("Every job that runs or waits", "application/json"),
    "/api/jobs/{job}": {
        **_get(
            "Where a job stands, and when it can expect to begin", "application/json", **_OF_JOB
        ),
        **_delete("Take a job out of the queue, or stop it", _JOB_ID),
    },
    "/api/consumers/{name}/load": _action(
        "Make a consumer resident, loaded with these options if any are given", _LOAD
    ),
    "/api/consumers/{name}/unload": _action("Make a consumer absent"),
    "/api/consumers/{name}/pin": _action("Keep a consumer in VRAM, and load it"),
    "/api/consumers/{name}/unpin": _action("Let a consumer be evicted again"),
    "/api/consumers/{name}/restart": _action("Stop a consumer and its jobs, and load it again"),
    "/api/pause": _post("Let running jobs end, evict everybody, hold the queue", "Done"),
    "/api/resume": _post("Go on after a pause", "Done"),
    "/v1/models": _get("Every model, as OpenAI lists them", "application/json"),
    "/v1/models/{model}": _get("One model", "application/json", parameters=[_MODEL]),
    **{path: {"post": _job(_BY_MODEL)["post"]} for path in PATHS},
    "/consumers/{name}": _job("A job at the consumer's root", _NAME),
    "/consumers/{name}/{path}": _job(
        "The consumer's own HTTP and WebSocket", _NAME, _REST, _ANSWER
    ),
}


def document(job_paths: tuple[str, ...]) -> dict[str, Any]:
    """The document, with the job routes of this configuration."""
    jobs = {path: _job("A job; paths below it are its too") for path in job_paths}
    return {
        "openapi": "3.1.0",
        "info": {"title": "mgpu", "version": __version__},
        "security": [{"key": []}, {}],
        "paths": {**_PATHS, **jobs},
        "components": _COMPONENTS,
    }


async def openapi(request: web.Request) -> web.Response:
    """The document as JSON."""
    return web.json_response(document(request.app[ROUTES].job_paths))
