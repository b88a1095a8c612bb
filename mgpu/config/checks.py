"""Checks across keys: what is well formed by itself and still cannot work.

Each check gives ``Finding`` values. A finding that rests on a value which is wrong already is left
out by the caller, so that one slip is not reported twice.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from yarl import URL

from mgpu.config import (
    api_key,
    completions,
    gpu_placeholders,
    keys,
    listen,
    patterns,
    residency,
)
from mgpu.config.model import Config, ConsumerConfig
from mgpu.config.problems import Finding, KeyPath, did_you_mean

OWN_PATHS = ("/api", "/consumers", "/healthz", "/metrics", "/openapi.json", "/readyz")
"""What the broker answers itself, with everything below."""

_CONSUMER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_UNIT_NAME = re.compile(r"(?!-)[A-Za-z0-9:_.\\@-]{1,255}")
_CONTAINER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")

_OF_THE_CONNECTION = frozenset(
    {"connection", "content-length", "host", "te", "trailer", "transfer-encoding", "upgrade"}
)


def check(config: Config, consumers: Collection[str] | None) -> Iterator[Finding]:
    """Give what is wrong in the sound part of a configuration.

    ``consumers`` are all names it gives, those of unsound consumers too; None: nobody knows.
    """
    yield from _server(config)
    yield from _listening(config)
    yield from _gpus(config)
    for name, consumer in config.consumers.items():
        yield from _consumer(config, name, consumer)
    if consumers is not None:
        yield from _references(config, consumers)
    yield from completions.check_routes(config)
    yield from _load_bodies(config)
    for path in config.routes:
        yield from _route(path)
        if path != "/" and path.endswith("/") and path.rstrip("/") in config.routes:
            yield Finding(("routes", path), f"is the same route as {path.rstrip('/')}")
    yield from _endless(config.model_dump(), ())


def _server(config: Config) -> Iterator[Finding]:
    server = config.server
    for index, key in enumerate(server.api_keys):
        if not api_key.can_be_sent(key.get_secret_value()):
            yield Finding(("server", "api_keys", index), api_key.WHAT_A_KEY_IS)
    if server.api_keys_file is not None:
        try:
            keys.read_file(server.api_keys_file)
        except keys.KeysFileError as error:
            yield Finding(("server", "api_keys_file"), str(error))


def _listening(config: Config) -> Iterator[Finding]:
    """Every address the broker listens on: who may come there, and that nobody else has it."""
    listens: list[tuple[KeyPath, str]] = [(("server", "listen"), config.server.listen)]
    for name, consumer in config.consumers.items():
        if consumer.listen is not None:
            listens.append((("consumers", name, "listen"), consumer.listen))
    addresses: dict[KeyPath, listen.Address] = {}
    for path, text in listens:
        try:
            address = listen.parse(text)
        except ValueError as error:
            yield Finding(path, str(error))
            continue
        for other_path, other in addresses.items():
            if address.meets(other):
                yield Finding(path, f"{address} is taken by {_named(other_path)}", (other_path,))
        addresses[path] = address
        if address.exposed and not config.server.api_keys and not config.server.api_keys_file:
            yield Finding(
                path,
                f"{address} may be reached from other machines: "
                "set server.api_keys or server.api_keys_file, or listen on 127.0.0.1",
                (("server", "api_keys"), ("server", "api_keys_file")),
            )
    yield from _own_urls(config, addresses)


def _own_urls(config: Config, addresses: Mapping[KeyPath, listen.Address]) -> Iterator[Finding]:
    """Find consumers whose requests would come back to the broker."""
    for name, consumer in config.consumers.items():
        url = URL(consumer.url)
        target = listen.TcpAddress(url.host or "", url.port or 0)
        for path, address in addresses.items():
            # An address that listens everywhere is not at every other machine.
            everywhere = str(address).startswith(("0.0.0.0:", "[::]:")) and target.exposed
            if everywhere or not address.meets(target):
                continue
            at = "" if path == ("server", "listen") else f", {_named(path)}"
            url_path: KeyPath = ("consumers", name, "url")
            yield Finding(url_path, f"is the broker's own address{at}", (path,))


def _named(path: KeyPath) -> str:
    return ".".join(map(str, path))


def _gpus(config: Config) -> Iterator[Finding]:
    devices = config.gpu.devices
    if devices == "all":
        return
    yield from _list_of_gpus(("gpu", "devices"), devices)
    for index, device in enumerate(devices):
        if isinstance(device, int) and device < 0:
            yield Finding(("gpu", "devices", index), "must be at least 0")


def _list_of_gpus(path: KeyPath, gpus: Sequence[int | str]) -> Iterator[Finding]:
    if not gpus:
        yield Finding(path, "must name at least one GPU")
    for gpu, count in Counter(gpus).items():
        if count > 1:
            yield Finding(path, f"names GPU {gpu} {count} times")


def _consumer(config: Config, name: str, consumer: ConsumerConfig) -> Iterator[Finding]:
    path = ("consumers", name)
    if not _CONSUMER_NAME.fullmatch(name):
        yield Finding(path, "a name is letters, digits, '.', '_' and '-', 64 at most")
    if consumer.gpus != "auto":
        yield from _list_of_gpus((*path, "gpus"), consumer.gpus)
        yield from _unmanaged(config, (*path, "gpus"), consumer.gpus)
    if consumer.footprint_mib != "auto" and consumer.residual_mib > consumer.footprint_mib > 0:
        yield Finding(
            (*path, "residual_mib"),
            f"{consumer.residual_mib} is more than footprint_mib, {consumer.footprint_mib}",
            ((*path, "footprint_mib"),),
        )
    if consumer.systemd_unit is not None:
        yield from _unit((*path, "systemd_unit"), consumer.systemd_unit)
    yield from _supervised(path, consumer)
    for index, request in enumerate(consumer.not_activity):
        yield from _request((*path, "not_activity", index), request)
    for index, request in enumerate(consumer.deny):
        yield from _request((*path, "deny", index), request)
    for index, header in enumerate(consumer.drop_headers):
        yield from _header((*path, "drop_headers", index), header, "")
    yield from _calls(path, consumer)
    requests = consumer.completion.requests if consumer.completion else ()
    for index, request in enumerate(requests):
        yield from _request((*path, "completion", "requests", index), request)
    yield from completions.check(path, consumer)
    for where, message in gpu_placeholders.slips(consumer):
        yield Finding((*path, *where), message)


def _unmanaged(config: Config, path: KeyPath, gpus: Sequence[int]) -> Iterator[Finding]:
    devices = config.gpu.devices
    if devices == "all" or not all(isinstance(device, int) for device in devices):
        return
    for index, gpu in enumerate(gpus):
        if gpu not in devices:
            yield Finding((*path, index), f"GPU {gpu} is not in gpu.devices", (("gpu", "devices"),))


def _unit(path: KeyPath, unit: str) -> Iterator[Finding]:
    filled = gpu_placeholders.fill_unit(unit, gpu_placeholders.SOMEWHERE)
    if not _UNIT_NAME.fullmatch(filled):
        if not any(gpu_placeholders.unknown(unit)):
            yield Finding(path, f"{unit!r} is not the name of a systemd unit")
    elif unit.endswith("@") or "@." in unit:
        yield Finding(path, f"{unit} is a template: name an instance, such as a@b.service")


def _supervised(path: KeyPath, consumer: ConsumerConfig) -> Iterator[Finding]:
    """One way at most to start and stop it as a whole, and only keys that belong to that way."""
    ways = ("systemd_unit", "container", "command")
    given = [way for way in ways if getattr(consumer, way) is not None]
    for way in given[1:]:
        yield Finding((*path, way), f"cannot stand next to {given[0]}: only one may start it")
    if consumer.container is not None and not _is_container(consumer.container):
        yield Finding(
            (*path, "container"), f"{consumer.container!r} is not the name or id of a container"
        )
    socket = consumer.container_socket
    if socket is not None and not socket.removeprefix("unix://").startswith("/"):
        yield Finding((*path, "container_socket"), "must be unix:///PATH or /PATH")
    for key, way in (
        ("container_socket", "container"),
        ("cwd", "command"),
        ("environment", "command"),
    ):
        if getattr(consumer, key) and getattr(consumer, way) is None:
            yield Finding((*path, key), f"is only for a consumer with {way}", ((*path, way),))
    if consumer.command is not None:
        yield from _program(path, consumer)


def _is_container(name: str) -> bool:
    """Whether it is a container's name or id, or would be if its placeholders were right."""
    filled = gpu_placeholders.fill_text(name, gpu_placeholders.SOMEWHERE)
    return bool(_CONTAINER.fullmatch(filled)) or any(gpu_placeholders.unknown(name))


def _program(path: KeyPath, consumer: ConsumerConfig) -> Iterator[Finding]:
    if consumer.vram_managed:
        yield Finding(
            (*path, "command"), "nobody would start it: with vram_managed, nothing is loaded"
        )
    if consumer.initially == "resident":
        yield Finding((*path, "initially"), "a command is not running when the broker starts")
    for name in consumer.environment:
        if not name or "=" in name:
            yield Finding((*path, "environment", name), "is not the name of a variable")


def _request(path: KeyPath, request: str) -> Iterator[Finding]:
    try:
        patterns.parse(request)
    except ValueError as error:
        yield Finding(path, str(error))


def _calls(path: KeyPath, consumer: ConsumerConfig) -> Iterator[Finding]:
    for key, call in (
        ("load", consumer.load),
        ("unload", consumer.unload),
        ("health", consumer.health),
    ):
        if call is not None and not call.ok:
            yield Finding((*path, key, "ok"), "must name at least one status")
    if consumer.unload and consumer.unload.until_absent and consumer.resident is None:
        key_path = (*path, "unload", "until_absent")
        yield Finding(key_path, "needs resident, which tells when", ((*path, "resident"),))
    each = consumer.unload.for_each if consumer.unload else None
    requests = {
        (): consumer.headers,
        ("load",): consumer.load and consumer.load.headers,
        ("unload",): consumer.unload and consumer.unload.headers,
        ("unload", "for_each"): each and each.headers,
        ("health",): consumer.health and consumer.health.headers,
        ("resident",): consumer.resident and consumer.resident.headers,
        ("busy",): consumer.busy and consumer.busy.headers,
    }
    for below, headers in requests.items():
        for header, value in (headers or {}).items():
            yield from _header((*path, *below, "headers", header), header, value)


def _header(path: KeyPath, header: str, value: str) -> Iterator[Finding]:
    if not _HEADER_NAME.fullmatch(header) or not value.isprintable():
        yield Finding(path, "cannot be sent as a header")
    elif header.lower() in _OF_THE_CONNECTION:
        yield Finding(path, "is the broker's to set")


def _references(config: Config, consumers: Collection[str]) -> Iterator[Finding]:
    named: list[tuple[KeyPath, str]] = [
        (("routes", path, "consumer"), route.consumer) for path, route in config.routes.items()
    ]
    named += [(("models", model), name) for model, name in config.models.items()]
    named += [
        (("consumers", name, "can_coexist_with", index), other)
        for name, consumer in config.consumers.items()
        for index, other in enumerate(consumer.can_coexist_with)
        if other != "*"
    ]
    for path, name in named:
        if name not in consumers:
            hint = did_you_mean(name, consumers, what="consumers")
            yield Finding(path, f"no consumer is called {name!r}; {hint}")


def _load_bodies(config: Config) -> Iterator[Finding]:
    """Find routes whose load options no load can be given."""
    for path, route in config.routes.items():
        key_path = ("routes", path, "load_body")
        consumer = config.consumers.get(route.consumer)
        if route.load_body is None or consumer is None:
            continue
        try:
            residency.load_key(consumer, route.load_body)
        except ValueError as error:
            message = f"{route.consumer} takes no such load options: {error}"
            yield Finding(key_path, message, (("consumers", route.consumer),))
        for message in gpu_placeholders.slips_in(route.load_body):
            yield Finding(key_path, message)


def _route(path: str) -> Iterator[Finding]:
    key = ("routes", path)
    own = next((own for own in OWN_PATHS if path == own or path.startswith(f"{own}/")), None)
    if path == "/":
        yield Finding(key, "is the broker's own page")
    elif own:
        yield Finding(key, f"{own} is the broker's own")
    elif any(segment in {"", ".", ".."} for segment in path.rstrip("/").split("/")[1:]):
        yield Finding(key, "must have no empty, '.' or '..' segment")
    elif not path.isascii() or not path.isprintable() or set(path) & set("?#%\\ "):
        yield Finding(key, "must be a plain path: no query, fragment, blank or escape")


def _endless(value: Any, path: KeyPath) -> Iterator[Finding]:
    """Find infinite numbers, which the environment can bring in; the file refuses them itself."""
    match value:
        case float() if not math.isfinite(value):
            yield Finding(path, "must be a finite number")
        case dict():
            for key, item in value.items():
                yield from _endless(item, (*path, key))
        case _:
            pass
