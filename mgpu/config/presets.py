"""Presets: what is known of a service, as a YAML file that fills in a consumer's keys.

A preset is found by its name: in ``presets/`` next to broker.yaml, then in
``$XDG_CONFIG_HOME/mgpu/presets``, in ``/etc/mgpu/presets``, and last among those that come with
the program. It holds paths and never an address: which host is asked is the consumer's ``url``
alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from mgpu.config import files
from mgpu.config.messages import sentences
from mgpu.config.model import (
    CallPath,
    ConsumerConfig,
    JmesPath,
    Port,
    Section,
    UpstreamPath,
    UrlPath,
)
from mgpu.config.openai import PATHS
from mgpu.config.placeholders import names_in
from mgpu.config.problems import (
    InvalidConfig,
    KeyPath,
    Origins,
    Problem,
    did_you_mean,
    reading_order,
)
from mgpu.config.schema import keys_at, kinds_at

BUILT_IN = Path(__file__).with_name("services")
SUFFIX = ".yaml"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Nothing that could lead out of a folder."""

OF_A_MACHINE = (
    "url",
    "preset",
    "parameters",
    "systemd_unit",
    "container",
    "container_socket",
    "command",
    "cwd",
    "environment",
    "listen",
)
"""Keys of a consumer that say where and how it runs here: not a preset's business."""
CHANGE_ME = "CHANGE-ME"
"""What ``mgpu init`` writes for a required parameter that it cannot know."""
AT_RUN_TIME = frozenset({"item", "gpu_index", "gpu_uuid"})
"""Names in braces that are filled in later than when the configuration is read."""


class Parameter(Section):
    """What a user may, or must, say about his own installation of the service."""

    description: str
    required: bool = False
    default: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Parameter:
        if self.required and self.default is not None:
            raise ValueError("required and default exclude each other")
        return self


class Fingerprint(Section):
    """A harmless ``GET`` that only this service answers like this."""

    path: CallPath
    when: JmesPath | None = None
    contains: str | None = None
    """Text that the answer's body must hold."""
    rather_than: tuple[str, ...] = ()
    """Presets whose fingerprints this service shows as well: it is this one all the same."""

    @model_validator(mode="after")
    def _tells_something(self) -> Fingerprint:
        if self.when is None and self.contains is None:
            raise ValueError("when or contains is required")
        return self


class Preset(Section):
    """The whole file. ``consumer`` has the keys of ``consumers.NAME``."""

    service: str
    ports: tuple[Port, ...] = ()
    needs: str | None = None
    """How the service must have been started for this to work."""
    fingerprint: Fingerprint | None = None
    routes: dict[UrlPath, UpstreamPath] = Field(default_factory=dict)
    """Routes of the broker that make sense for it, each with the path at the service."""
    asked_as: dict[str, str] = Field(default_factory=dict)
    """Models that its clients ask for and that it does not name, each with how that is known."""
    parameters: dict[str, Parameter] = Field(default_factory=dict)
    consumer: Annotated[dict[str, Any], Field(min_length=1)]

    @property
    def filled_in(self) -> dict[str, Any]:
        """``consumer``, where those of its routes that are OpenAI's are among its ``paths``."""
        paths = self.consumer.get("paths", {})
        routed = {path: own for path, own in self.routes.items() if path in PATHS}
        if not routed or not isinstance(paths, dict):
            return self.consumer
        return {**self.consumer, "paths": routed | paths}

    @property
    def frees_vram(self) -> bool:
        """Whether a request can make the service give its VRAM back."""
        return "unload" in self.consumer or bool(self.consumer.get("vram_managed"))


@dataclass(frozen=True, slots=True)
class Found:
    """A preset that was read, and where."""

    name: str
    path: Path
    preset: Preset
    lines: dict[KeyPath, int] = field(repr=False)

    @property
    def built_in(self) -> bool:
        """Whether it came with the program."""
        return self.path.parent == BUILT_IN

    @property
    def hides_a_built_in_one(self) -> bool:
        """Whether a user's file stands in place of one that came with the program."""
        return not self.built_in and (BUILT_IN / self.path.name).is_file()


class NoSuchPresetError(LookupError):
    """There is no preset of this name; the message gives the nearest."""


def folders(config_folder: Path) -> tuple[Path, ...]:
    """Where presets are looked for, the first that has one wins."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111 - no home is no error
    return (
        config_folder / "presets",
        Path(home) / "mgpu" / "presets",
        Path("/etc/mgpu/presets"),
        BUILT_IN,
    )


def names(config_folder: Path) -> tuple[str, ...]:
    """Every name there is a preset of."""
    found = {
        file.stem
        for folder in folders(config_folder)
        if folder.is_dir()
        for file in folder.glob(f"*{SUFFIX}")
        if NAME.fullmatch(file.stem)
    }
    return tuple(sorted(found))


def find(name: str, config_folder: Path) -> Found:
    """Read a preset; raise ``NoSuchPresetError``, or ``InvalidConfig`` with all that is wrong."""
    if NAME.fullmatch(name):
        for folder in folders(config_folder):
            path = folder / f"{name}{SUFFIX}"
            if path.is_file():
                return _read(name, path)
    raise NoSuchPresetError(
        f"no preset is called {name!r}; {did_you_mean(name, names(config_folder), what='presets')}"
    )


def _read(name: str, path: Path) -> Found:
    file = files.read(path)
    origins = Origins(str(path), file.lines, {})
    problems = [Problem(str(path), line, str(key[-1]), text) for key, line, text in file.problems]
    problems += [
        origins.problem(key, f"{text} is no text in YAML 1.1: quote it, or write true, false or 90")
        for key, text in file.doubtful.items()
        if key[0] == "consumer" and Any in kinds_at(("consumers", name, *key[1:]))
    ]
    try:
        preset = Preset.model_validate(file.data)
    except ValidationError as error:
        found = sentences(error, file.data, lambda key: keys_at(key, Preset))
        problems += [origins.problem(key, sentence) for key, sentence in found]
        raise InvalidConfig(sorted(problems, key=reading_order)) from error
    problems += [origins.problem(key, sentence) for key, sentence in _doubts(preset)]
    if problems:
        raise InvalidConfig(sorted(problems, key=reading_order))
    return Found(name, path, preset, file.lines)


def _doubts(preset: Preset) -> Iterator[tuple[KeyPath, str]]:
    for key, value in preset.consumer.items():
        path = ("consumer", key)
        if key in OF_A_MACHINE:
            yield path, "is for broker.yaml: it says where a service runs, not what it is"
        elif key not in ConsumerConfig.model_fields:
            hint = did_you_mean(key, ConsumerConfig.model_fields, what="keys")
            yield path, f"unknown key; {hint}"
        if key == "completion":
            continue  # The names there are what a consumer answered with.
        for name in dict.fromkeys(names_in(value)):
            if name not in preset.parameters and name not in AT_RUN_TIME:
                hint = did_you_mean(name, preset.parameters, what="parameters")
                yield path, f"{{{name}}} is no parameter of this preset; {hint}"
    for name in preset.parameters:
        if name in AT_RUN_TIME:
            yield ("parameters", name), "is a name that is filled in when the call is made"
