"""Checks of ``completion`` and ``workflows``: what is named in them must be there to be named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mgpu.config import patterns, template, workflow
from mgpu.config.model import CompletionConfig, Config, ConsumerConfig
from mgpu.config.problems import Finding, KeyPath, did_you_mean

ID = "id"


def check(path: KeyPath, consumer: ConsumerConfig) -> Iterator[Finding]:
    """Give what is wrong in the consumer whose section is at ``path``."""
    if consumer.completion is not None:
        yield from _completion((*path, "completion"), consumer.completion)
    for name, config in consumer.workflows.items():
        where = (*path, "workflows", name)
        if consumer.completion is None:
            message = "needs completion, which tells when its work is over"
            yield Finding(where, message, ((*path, "completion"),))
        try:
            workflow.read(config)
        except workflow.WorkflowError as error:
            for key, message in error.problems:
                yield Finding((*where, *key), message)


def check_routes(config: Config) -> Iterator[Finding]:
    """Give every route to a workflow that is not there."""
    for path, route in config.routes.items():
        consumer = config.consumers.get(route.consumer)
        if route.workflow is None or consumer is None:
            continue
        if consumer.completion and not _covers(consumer.completion, route.path):
            yield Finding(
                ("routes", path, "path"),
                f"POST {route.path} is not among the completion.requests of {route.consumer}",
                (("consumers", route.consumer, "completion"),),
            )
        if route.workflow in consumer.workflows:
            continue
        hint = did_you_mean(route.workflow, consumer.workflows, what="workflows")
        yield Finding(
            ("routes", path, "workflow"),
            f"{route.consumer} has no workflow {route.workflow!r}; {hint}",
            (("consumers", route.consumer, "workflows"),),
        )


def _covers(completion: CompletionConfig, path: str) -> bool:
    try:
        return patterns.Patterns(completion.requests).match("POST", path)
    except ValueError:
        return True  # said already


def _completion(path: KeyPath, config: CompletionConfig) -> Iterator[Finding]:
    if not config.requests:
        yield Finding((*path, "requests"), "must name at least one request")
    yield from _names((*path, "poll", "path"), config.poll.path)
    if template.names_in(config.poll.path) != {ID}:
        yield Finding((*path, "poll", "path"), "must hold {id}")
    if config.listed is not None:
        yield from _names((*path, "listed", "path"), config.listed.path, known=frozenset())
    for index, call in enumerate(config.cancel):
        yield from _names((*path, "cancel", index, "path"), call.path)
        yield from _names((*path, "cancel", index, "body"), call.body)
    if config.results is not None and config.results.files is None:
        yield from _names((*path, "results", "path"), config.results.path)
    elif config.results is not None and template.has_stray_brace(config.results.path):
        yield Finding((*path, "results", "path"), _STRAY)


_STRAY = "holds a brace that is not part of a {name}"


def _names(path: KeyPath, value: Any, known: frozenset[str] = frozenset({ID})) -> Iterator[Finding]:
    for name in sorted(template.names_in(value) - known):
        allowed = ", ".join(f"{{{each}}}" for each in sorted(known)) or "no name"
        yield Finding(path, f"knows no {{{name}}}, only {allowed}")
    if isinstance(value, str) and path[-1] == "path" and template.has_stray_brace(value):
        yield Finding(path, _STRAY)
