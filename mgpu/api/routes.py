"""Which consumer a path belongs to, and the URL it has there.

Built once from the configuration. A request chooses among what is configured and never names an
upstream: the origin and the first part of the path are the configuration's, and only what follows
below a configured path is the request's, as it was sent.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from yarl import URL

from mgpu.api.paths import Target, read_target
from mgpu.config.model import Config, ConsumerConfig
from mgpu.config.patterns import Patterns
from mgpu.config.residency import load_key
from mgpu.config.workflow import Workflow, read
from mgpu.errors import Forbidden, UnknownConsumer


class Upstream:
    """One consumer as HTTP reaches it."""

    def __init__(self, name: str, config: ConsumerConfig) -> None:
        origin = URL(config.url)
        self.name = name
        self.origin = str(origin.origin())
        self._scheme = origin.scheme
        self._authority = origin.raw_authority
        self._not_activity = Patterns(config.not_activity)
        self._paths = config.paths
        self.drop_headers = frozenset(map(str.lower, config.drop_headers))
        """Fields of a request that do not reach it, in lower case."""
        self._denied = Patterns(map(_folded, config.deny))
        self._lasting = Patterns(config.completion.requests if config.completion else ())
        self.completion = config.completion
        self.headers = config.headers
        """Of what the broker itself asks it; no job gets them."""
        self.workflows = {name: read(each) for name, each in config.workflows.items()}
        self._config = config
        self.load_key: str | None = None
        """With what jobs that come this way want it loaded; None: with anything."""

    def with_load_body(self, options: Mapping[str, Any] | None) -> Upstream:
        """The same consumer for jobs that want it loaded with these options, if any.

        Raises ``ValueError`` where it cannot be.
        """
        if options is None:
            return self
        wanted = copy.copy(self)
        wanted.load_key = load_key(self._config, options)
        return wanted

    def url(self, path: str, query: str) -> URL:
        """The URL of a path and a query that are encoded already."""
        return URL.build(
            scheme=self._scheme,
            authority=self._authority,
            path=path,
            query_string=query,
            encoded=True,
        )

    def has(self, path: str) -> bool:
        """Whether the configuration says that it has this path of OpenAI's itself."""
        return path in self._paths

    def openai_url(self, path: str, query: str) -> URL:
        """Where this consumer has one of OpenAI's routes: there too, unless configured."""
        return self.url(URL.build(path=self._paths.get(path, path)).raw_path, query)

    def is_activity(self, method: str, path: str) -> bool:
        """Whether a request uses the GPU; ``path`` is decoded."""
        return not self._not_activity.match(method, path)

    def outlasts_its_answer(self, method: str, path: str) -> bool:
        """Whether what a request asks for goes on after its answer; ``path`` is decoded."""
        return self._lasting.match(method, path)

    def check_allowed(self, method: str, path: str) -> None:
        """Raise ``errors.Forbidden`` for what must not be asked of it; ``path`` is decoded.

        Some servers know no case and no slash at the end: what differs in nothing else is refused
        as well.
        """
        folded = path.lower()
        if self._denied.match(method, folded) or self._denied.match(method, folded.rstrip("/")):
            raise Forbidden(f"The broker passes no {method} {path} to {self.name}: see its deny.")


def _folded(line: str) -> str:
    methods, _, path = line.partition(" ")
    return f"{methods} {path.lower()}"


@dataclass(frozen=True, slots=True)
class _JobRoute:
    upstream: Upstream
    path: str
    """At the consumer, encoded, without a slash at the end."""
    workflow: Workflow | None


class Routes:
    """Every path of the configuration that leads to a consumer."""

    def __init__(self, config: Config) -> None:
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Lead where this configuration says."""
        upstreams = {name: Upstream(name, each) for name, each in config.consumers.items()}
        self._jobs = {
            _segments(path): _JobRoute(
                upstream := upstreams[route.consumer].with_load_body(route.load_body),
                URL.build(path=route.path).raw_path.rstrip("/"),
                None if route.workflow is None else upstream.workflows[route.workflow],
            )
            for path, route in config.routes.items()
        }
        self.upstreams = upstreams
        self.job_paths = tuple(config.routes)
        self._deepest = max(map(len, self._jobs), default=0)

    def job(self, target: Target) -> tuple[Upstream, URL, Workflow | None] | None:
        """Where a job at this path goes: by the longest configured path that it is or is below."""
        for depth in range(min(self._deepest, len(target.segments)), -1, -1):
            route = self._jobs.get(target.segments[:depth])
            if route is not None:
                path = route.path + target.raw_below(depth)
                url = route.upstream.url(path or "/", target.query)
                return route.upstream, url, route.workflow
        return None

    def upstream(self, name: str) -> Upstream:
        """The consumer of this name; raise ``errors.UnknownConsumer``."""
        try:
            return self.upstreams[name]
        except KeyError:
            raise UnknownConsumer(
                f"There is no consumer {name!r}.{did_you_mean(name, self.upstreams)}"
            ) from None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that names the nearest known name, or nothing."""
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _segments(path: str) -> tuple[str, ...]:
    segments = read_target(URL.build(path=path).raw_path).segments
    return segments[:-1] if segments[-1] == "" else segments


ROUTES = web.AppKey("routes", Routes)
TARGET = web.RequestKey("target", Target)
"""Set on every request by ``guard``."""
