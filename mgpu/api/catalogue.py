"""Which consumer serves a model: as ``models`` says, and as the consumers themselves tell.

Those that have ``consumers.NAME.models`` are asked every few seconds while they are well, and once
more when a model is wanted that nobody has told of. What one has told stands until it tells
something else, also over restarts of the broker, since a consumer that was stopped to make room
still serves its models: its next job starts it. An empty list is no word either: some name only
what they have loaded.

A configured name wins over what is told. A name that two consumers tell belongs to nobody until
the configuration says to whom. Where a name is not known, that name with the tag ``latest`` is
meant, as ollama's clients are used to. A job whose model nobody knows goes to the only consumer
that has its path and of which no models are known: whether it has that one, it will say itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass

import structlog
from aiohttp import web

from mgpu.api.deps import DEPS, Deps
from mgpu.api.routes import did_you_mean
from mgpu.config import openai
from mgpu.config.model import Config, ConsumerConfig
from mgpu.consumers.models import served_models
from mgpu.errors import UnknownModel

ROUND_S = 2.0
REFRESH_S = 5.0
_AGAIN_S = 1.0
"""Who asks for models that do not exist does not make the consumers be asked all the time."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Model:
    """A model and who serves it."""

    name: str
    consumer: str


class Catalogue:
    """Every model there is."""

    def __init__(self, deps: Deps) -> None:
        self.began_at = int(time.time())
        self._deps = deps
        self._told = dict(deps.told_models)
        self._asked_at: dict[str, float] = {}
        self._asking = asyncio.Lock()
        self._telling: dict[str, ConsumerConfig] = {}
        self.configure(deps.config)

    def configure(self, config: Config) -> None:
        """Serve the models of this configuration; what consumers told by another way is dropped."""
        self._configured = config.models
        self._consumers = config.consumers
        telling = {n: c for n, c in config.consumers.items() if c.models is not None}
        for name, before in self._telling.items():
            if name not in telling or telling[name].models != before.models:
                self._told.pop(name, None)
                self._asked_at.pop(name, None)
        self._telling = telling

    def models(self) -> list[Model]:
        """All that a request may name: the configured ones, then by consumer."""
        told = [
            Model(name, consumers[0])
            for name, consumers in self._tellers().items()
            if name not in self._configured and len(consumers) == 1
        ]
        return [*(Model(*each) for each in self._configured.items()), *told]

    def problems(self) -> tuple[str, ...]:
        """Models that nobody can ask for, since more than one consumer tells of them."""
        return tuple(
            _conflict(name, consumers)
            for name, consumers in self._tellers().items()
            if name not in self._configured and len(consumers) > 1
        )

    def find(self, name: str) -> Model | None:
        """The model of this name, as far as is known now."""
        tellers = self._tellers()
        for known in _readings(name):
            if known in self._configured:
                return Model(known, self._configured[known])
            if known in tellers:
                consumers = tellers[known]
                return Model(known, consumers[0]) if len(consumers) == 1 else None
        return None

    async def wanted(self, name: str, path: str | None = None) -> Model:
        """The model of this name, asking the consumers again where it is not known yet.

        ``path``: OpenAI's, for a job there. Raises ``errors.UnknownModel`` that names the nearest,
        and the consumers whose models are not known.
        """
        if self.find(name) is None:
            await self.refresh(_AGAIN_S)
        found = self.find(name)
        if found is not None:
            return found
        tellers = self._tellers()
        for known in _readings(name):
            if known in tellers:
                raise UnknownModel(_conflict(known, tellers[known]))
        silent = () if path is None else self._silent(path)
        if len(silent) == 1:
            return Model(name, silent[0])
        raise UnknownModel(self._unknown(name, path, silent))

    async def refresh(self, older_than_s: float) -> None:
        """Ask those that are well and have not been asked for so long; within 2 s."""
        if not self._telling:
            return
        async with self._asking:
            now = time.monotonic()
            views = self._deps.broker.snapshot().consumers
            due = [
                name
                for name in self._telling
                if name in views
                and views[name].healthy
                and now - self._asked_at.get(name, -1e9) >= older_than_s
            ]
            self._asked_at.update(dict.fromkeys(due, now))
            await asyncio.gather(*(self._ask(name, self._telling[name]) for name in due))

    async def watch(self) -> None:
        """Keep up with the consumers for ever."""
        while True:
            await self.refresh(REFRESH_S)
            await asyncio.sleep(ROUND_S)

    async def _ask(self, consumer: str, asked: ConsumerConfig) -> None:
        names = await served_models(asked, self._deps.session)
        current = self._telling.get(consumer)
        if current is None or current.models != asked.models:
            return
        if not names or names == self._told.get(consumer):
            return
        self._told[consumer] = names
        self._deps.keep_models(consumer, names)
        log.info("models", consumer=consumer, count=len(names))
        for problem in self.problems():
            log.warning("model conflict", problem=problem)

    def _silent(self, path: str) -> tuple[str, ...]:
        """Who has this path, and could serve any model there, for all that is known."""
        return tuple(
            name
            for name, consumer in self._consumers.items()
            if openai.serves(consumer, path)
            and (consumer.models is None or (name not in self._told and self._may_yet_tell(name)))
        )

    def _may_yet_tell(self, consumer: str) -> bool:
        """Whether a job would find it there."""
        views = self._deps.broker.snapshot().consumers
        is_well = consumer in views and views[consumer].healthy
        return is_well or self._consumers[consumer].is_supervised

    def _unknown(self, name: str, path: str | None, silent: Collection[str]) -> str:
        hint = did_you_mean(name, [model.name for model in self.models()])
        text = f"No consumer serves the model {name!r}.{hint}"
        if not hint and self.models():
            text += " GET /v1/models lists those there are."
        if silent:
            text += (
                f" {path} is served by {_and(silent)}, whose models are not known: "
                "say whose it is in models."
            )
        unheard = [each for each in self._telling if each not in self._told and each not in silent]
        if unheard:
            text += f" {_and(unheard)} could not be asked yet."
        return text

    def _tellers(self) -> dict[str, list[str]]:
        tellers: dict[str, list[str]] = {}
        for consumer in self._telling:
            for name in self._told.get(consumer, ()):
                tellers.setdefault(name, []).append(consumer)
        return tellers


def _readings(name: str) -> tuple[str, str]:
    """What a request's name may be known as, the likelier first."""
    return name, f"{name}:latest"


def _conflict(name: str, consumers: list[str]) -> str:
    return f"The model {name!r} is served by {_and(consumers)}: say whose it is in models."


def _and(names: Collection[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


CATALOGUE = web.AppKey("catalogue", Catalogue)


async def keep_catalogue(app: web.Application) -> AsyncIterator[None]:
    """For ``Application.cleanup_ctx``."""
    app[CATALOGUE] = Catalogue(app[DEPS])
    watching = asyncio.create_task(app[CATALOGUE].watch(), name="ask for models")
    yield
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
