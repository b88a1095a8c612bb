"""A broker.yaml, with comments, for the services that a survey found.

Every service keeps its port, and the broker opens another one for it (``listen``), so that a client
has one number to change. Paths of the broker's own go to the first service that has them; where a
service tells its models, OpenAI's paths are left to the model that a request names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mgpu.config.openai import PATHS
from mgpu.config.presets import CHANGE_ME, Found
from mgpu.core.model import GpuReading
from mgpu.discovery.survey import Service, Stranger, Survey

BROKER_PORT = 7070
OFFSET = 10_000
"""From a service's own port to the one that the broker opens for it."""
_MAX_PORT = 65_535
_FALLBACK = range(17_000, 17_999)
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9/._@-]*|http://[][A-Za-z0-9.:]+")
_NOT_TEXT = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n", "nan", "inf"})
_SENTENCE = re.compile(r"\.\s")
_WIDTH = 96
MAX_STRANGERS = 20
MAX_NAMED = 12
"""Models of one service that are written down."""


class Proposal:
    """The file for a survey. ``ports`` has the broker's own port for each service."""

    def __init__(
        self, survey: Survey, gpus: Sequence[GpuReading], trouble: str, path: Path
    ) -> None:
        self._survey = survey
        self._gpus = gpus
        self._trouble = trouble
        self._path = path
        self._clear = [service for service in survey.services if service.is_clear]
        self._by_model = {
            path
            for service in self._clear
            if service.models is not None
            for path in service.found.preset.routes
            if path in PATHS
        }
        """Of OpenAI's paths, those where a request's model says whose it is."""
        taken = set(survey.taken)
        self._port = BROKER_PORT
        if BROKER_PORT in taken and BROKER_PORT not in survey.brokers:
            self._port = _free(BROKER_PORT + OFFSET, taken)
        taken |= {self._port, *(service.listener.port for service in survey.services)}
        self.ports: dict[str, int] = {}
        for service in survey.services:
            self.ports[service.name] = _free(service.listener.port + OFFSET, taken)
            taken.add(self.ports[service.name])

    def text(self) -> str:
        """The file as it is to be written; it is valid as soon as ``CHANGE_ME`` is replaced."""
        lines = [*self._head(), "", "server:", f"  listen: 127.0.0.1:{self._port}", ""]
        lines += self._consumers()
        lines += ["", *self._routes()]
        lines += self._models()
        rest = [*self._strangers()]
        return "\n".join([*lines, *([""] if rest else []), *rest]) + "\n"

    def _head(self) -> Iterator[str]:
        yield from comment(
            "Proposed by mgpu init from what runs on this machine: each service was recognised by "
            "its own answers. Look through it, then:"
        )
        yield f"#   mgpu check -c {self._path}"
        yield f"#   mgpu serve -c {self._path}"
        yield "#"
        for gpu in self._gpus:
            if gpu.error is None:
                yield from comment(f"GPU {gpu.index}: {gpu.name}, {gpu.total_mib} MiB")
            else:
                yield from comment(f"GPU {gpu.index}: {gpu.error}")
        if not self._gpus:
            yield from comment(f"No NVIDIA GPU was found: {self._trouble or 'there is none'}")
            yield from comment("To try the broker without one: gpu: {backend: simulated}")

    def _consumers(self) -> Iterator[str]:
        if not self._clear:
            yield "consumers: {}"
        else:
            yield "consumers:"
        for number, service in enumerate(self._survey.services):
            if number:
                yield ""
            yield from self._consumer(service) if service.is_clear else self._unclear(service)

    def _consumer(self, service: Service) -> Iterator[str]:
        preset = service.found.preset
        yield from comment(f"{preset.service} at {service.url}{_process(service)}", 2)
        held = held_mib(service, self._gpus)
        if held:
            yield from comment(f"It holds {held} MiB of VRAM just now", 2)
        if service.models:
            yield from comment(f"Its models: {_first(service.models)}", 2)
        yield from comment(self._for_clients(service), 2)
        for note in notes(service):
            yield from comment(note, 2)
        yield f"  {service.name}:"
        yield f"    url: {scalar(service.url)}"
        yield f"    preset: {scalar(service.found.name)}"
        yield f"    listen: 127.0.0.1:{self.ports[service.name]}"
        yield (
            "    footprint_mib: auto  # learned while it works; "
            f"mgpu measure {service.name} --store finds the number"
        )
        home = service.home
        if home.unit is not None:
            yield f"    systemd_unit: {scalar(home.unit)}"
            if home.scope == "user":
                yield "    systemd_scope: user"
        if home.container is not None:
            yield f"    container: {scalar(home.container)}"
        yield from _parameters(service)

    def _for_clients(self, service: Service) -> str:
        port = self.ports[service.name]
        text = f"Its clients: http://127.0.0.1:{port} in the place of {service.url}"
        if service.listener.exposed:
            text += (
                "; those on other machines reach it there only after listen: "
                f"0.0.0.0:{port}, server.api_keys and server.allowed_hosts"
            )
        return text

    def _unclear(self, service: Service) -> Iterator[str]:
        names = [found.name for found in service.presets]
        kinds = " and as ".join(found.preset.service for found in service.presets)
        yield from comment(
            f"{service.url}{_process(service)} answers as {kinds}: it could not be told which. "
            "Take the one that it is:",
            2,
        )
        yield f"  # {names[0]}:"
        yield f"  #   url: {scalar(service.url)}"
        for name in names:
            yield f"  #   preset: {name}"
        yield f"  #   listen: 127.0.0.1:{self.ports[service.name]}"

    def _routes(self) -> Iterator[str]:
        routed: dict[str, Service] = {}
        by_model: dict[str, list[str]] = {}
        others: list[tuple[str, str, Service]] = []
        for service in self._clear:
            for path, own in service.found.preset.routes.items():
                if path in self._by_model:
                    by_model.setdefault(path, []).append(service.name)
                elif path in routed:
                    others.append((path, own, service))
                else:
                    routed[path] = service
        if not routed:
            yield "routes: {}"
        else:
            yield "routes:  # jobs that are sent to the broker's own port"
        for path, service in routed.items():
            yield f"  {_route(path, service.found.preset.routes[path], service)}"
        for path, own, service in others:
            yield f"  # {_route(path, own, service)}"
        for path, names in by_model.items():
            yield from comment(f"{path} goes to whom the request's model belongs: {_and(names)}", 2)

    def _models(self) -> Iterator[str]:
        """Entries for what several have, and for what clients ask for and nobody tells of."""
        owners: dict[str, list[str]] = {}
        for service in self._clear:
            for model in service.models or ():
                owners.setdefault(model, []).append(service.name)
        sources: dict[str, str] = {}
        for service in self._clear:
            if self._by_model.isdisjoint(service.found.preset.routes):
                continue  # what comes to it needs no model
            for model, source in service.found.preset.asked_as.items():
                sources.setdefault(model, source)
                if service.name not in owners.setdefault(model, []):
                    owners[model].append(service.name)
        listed = {m: names for m, names in owners.items() if len(names) > 1 or m in sources}
        if listed:
            yield ""
            yield "models:  # that several have: the first one serves it; or that nobody tells of"
        for model, names in listed.items():
            why = f"or {_and(names[1:])}" if len(names) > 1 else f"asked for {sources[model]}"
            yield f"  {scalar(model)}: {names[0]}  # {why}"

    def _strangers(self) -> Iterator[str]:
        for url, owner in self._survey.parts:
            yield from comment(f"{url} was started by {owner} and belongs to it.")
        for stranger in self._survey.strangers[:MAX_STRANGERS]:
            yield from comment(describe(stranger))


def describe(stranger: Stranger) -> str:
    """One line about what answers and is not known."""
    text = f"{stranger.url}{f' ({stranger.process})' if stranger.process else ''} is not known"
    if stranger.wants_a_key:
        text += "; it wants a key, so it may be one of those that are"
    if stranger.usual:
        text += f"; by default {_and(stranger.usual)} would be there"
    return text


def held_mib(service: Service, gpus: Iterable[GpuReading]) -> int:
    """What the processes of a service hold now, as far as the driver tells."""
    return sum(
        process.mib or 0
        for gpu in gpus
        for process in gpu.processes or ()
        if process.pid in service.pids
    )


def notes(service: Service) -> Iterator[str]:
    """What to check before the broker controls this service."""
    preset = service.found.preset
    if preset.needs:
        yield f"It must have been started with {preset.needs}"
    first = _gotcha(service.found)
    if first:
        yield f"Note: {first}"
    home = service.home
    if home.unit is not None:
        yield f"Stopping {home.unit} must stop just this service: systemctl status {home.unit}"
    if home.note:
        yield f"It {home.note}" if home.note.startswith("runs") else home.note.capitalize()
    if not preset.frees_vram and home.unit is None and home.container is None:
        yield (
            "No request frees its VRAM: to be evicted it needs a systemd_unit, a container or a "
            "command"
        )
    if service.found.hides_a_built_in_one:
        yield f"The preset is that of {service.found.path}"


def comment(text: str, indent: int = 0) -> Iterator[str]:
    """A text as comment lines of the file; what could end a line is replaced."""
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    line = " " * indent + "#"
    for word in clean.split():
        if len(line) + 1 + len(word) > _WIDTH and not line.endswith("#"):
            yield line
            line = " " * indent + "#"
        line += f" {word}"
    yield line


def scalar(text: str) -> str:
    """A text as a YAML scalar: as it is where nobody can take it for something else."""
    if _PLAIN.fullmatch(text) and text.lower() not in _NOT_TEXT:
        return text
    return json.dumps(text)


def _parameters(service: Service) -> Iterator[str]:
    """The required ones must be there; a service's only model is likely to be meant."""
    only = service.models[0] if service.models and len(service.models) == 1 else None
    required: Mapping[str, str] = {
        name: only if only and name == "model" else CHANGE_ME
        for name, each in service.found.preset.parameters.items()
        if each.required
    }
    if required:
        pairs = ", ".join(f"{name}: {scalar(value)}" for name, value in required.items())
        yield f"    parameters: {{{pairs}}}"
    for name, each in service.found.preset.parameters.items():
        does = "" if each.required else f"{name}, if you like: "
        yield from comment(f"parameters: {does}{each.description}", 4)


def _process(service: Service) -> str:
    parts = [service.listener.process and f"process {service.listener.process}"]
    if service.home.unit is not None:
        parts.append(f"{service.home.scope} unit {service.home.unit}")
    if service.home.container is not None:
        parts.append(f"container {service.home.container}")
    told = ", ".join(filter(None, parts))
    return f" ({told})" if told else ""


def _gotcha(found: Found) -> str:
    """The first sentence of the first point at the head of the preset's file."""
    lines = found.path.read_text().splitlines()
    head = [line for line in lines if line.startswith("#")]
    points = " ".join(line.removeprefix("#").strip() for line in head).split(" - ")
    if len(points) == 1:
        return ""
    sentence: str = _SENTENCE.split(points[1])[0]
    return sentence.rstrip(".")


def _route(path: str, own: str, service: Service) -> str:
    return f"{scalar(path)}: {{consumer: {service.name}, path: {scalar(own)}}}"


def _and(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:-1]) + f" or {listed[-1]}" if len(listed) > 1 else "".join(listed)


def _first(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _free(wanted: int, taken: Collection[int]) -> int:
    choices: list[int] = [wanted, *_FALLBACK]
    return next(port for port in choices if port <= _MAX_PORT and port not in taken)
