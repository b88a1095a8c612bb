"""From broker.yaml and the environment to a ``Config``, or to every problem there is.

The order of precedence is defaults < preset < file < environment. What is wrong is noted and cut
out, and what is left is checked further, so that one run shows everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mgpu.config import environment, files, preset_merge, reload
from mgpu.config.checks import check
from mgpu.config.document import Document
from mgpu.config.messages import sentences
from mgpu.config.model import Config
from mgpu.config.preset_merge import Filled
from mgpu.config.problems import KeyPath, Origins, Report
from mgpu.config.schema import kinds_at

STAND_INS: dict[str | int, Any] = {
    "url": "http://consumer.invalid",
    "path": "/",
    "when": "@",
    "items": "@",
    "consumer": "?",
    "requests": (),
    "id": "@",
    "poll": {"path": "/", "until": "@"},
    "until": "@",
    "ids": "@",
    "file": "?",
    "places": {},
}
"""A valid value for every required key, so that what stands beside a wrong one is checked too."""

_RELATIVE_TO_THE_FILE: tuple[KeyPath, ...] = (
    ("server", "api_keys_file"),
    ("gpu", "simulated", "directory"),
    ("jobs", "database"),
    ("jobs", "trace"),
    ("consumers", "*", "cwd"),
    ("consumers", "*", "workflows", "*", "file"),
)
"""Key paths; ``*`` is every key there is."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A valid configuration, and what presets filled in of each consumer that has one."""

    config: Config
    filled: Mapping[str, Filled]


def load(path: Path, *, running: Config | None = None) -> Config:
    """Read and check the configuration; raise ``InvalidConfig`` with every problem."""
    return read(path, running=running).config


def read(path: Path, *, running: Config | None = None) -> Loaded:
    """Do what ``load`` does, and tell what came from presets.

    Paths in the file are relative to the file's own folder, those in the environment to the
    current one. A change against the configuration that is ``running`` which takes a restart is a
    problem too.
    """
    file = files.read(path)
    overlay = environment.read(file.data)
    report = Report(Origins(str(path), file.lines, overlay.variables))
    for key, line, message in file.problems:
        report.add_problem(key, Origins(str(path), {key: line}, {}).problem(key, message))
    for key, problem in overlay.problems:
        report.add_problem(key, problem)

    _anchor(file.data, path.parent)
    _check_doubtful(file, report)
    data = _merged(file.data, overlay.data)
    filled = preset_merge.fill_in(data, path.parent, report)
    _check_booleans(data, report)
    consumers = data.get("consumers", {})
    names = frozenset(consumers) if isinstance(consumers, dict) else None
    config = _validated(data, report)
    for finding in check(config, names):
        if not report.has(finding.path) and not any(map(report.knows, finding.rests_on)):
            report.add(finding.path, finding.message)
    if running is not None:
        for key in reload.fixed_changes(running, config):
            if not report.knows(key):
                report.add(key, reload.TAKES_A_RESTART)
    report.raise_if_any()
    return Loaded(config, filled)


def _anchor(data: dict[str, Any], folder: Path) -> None:
    for *outer, key in _RELATIVE_TO_THE_FILE:
        sections: list[Any] = [data]
        for step in outer:
            within = [section for section in sections if isinstance(section, dict)]
            sections = [
                inner
                for section in within
                for inner in (section.values() if step == "*" else [section.get(step)])
            ]
        for section in sections:
            if isinstance(section, dict) and isinstance(section.get(key), str):
                section[key] = str(folder / section[key])


def _check_doubtful(file: Document, report: Report) -> None:
    """In a body, which may hold anything, text must not look like a boolean of YAML 1.1."""
    for path, text in file.doubtful.items():
        if Any in kinds_at(path):
            report.add(path, f"{text} is no text in YAML 1.1: quote it, or write true, false or 90")


def _check_booleans(data: dict[str, Any], report: Report) -> None:
    """Refuse true and false where a number belongs: pydantic would take them for 1 and 0."""
    wrong = [
        path
        for path, value in _leaves(data)
        if isinstance(value, bool)
        and (kinds := set(kinds_at(path)))
        and kinds & {int, float}
        and bool not in kinds
    ]
    for path in wrong:
        report.add(path, "must be a number, not true or false")
        _cut(data, path)


def _leaves(data: Any) -> list[tuple[KeyPath, Any]]:
    leaves: list[tuple[KeyPath, Any]] = []
    unseen: list[tuple[KeyPath, Any]] = [((), data)]
    while unseen:
        path, value = unseen.pop()
        if isinstance(value, dict):
            unseen += [((*path, key), item) for key, item in value.items()]
        elif isinstance(value, list):
            unseen += [((*path, index), item) for index, item in enumerate(value)]
        else:
            leaves.append((path, value))
    return leaves


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(value, dict) and isinstance(under, dict):
            merged[key] = _merged(under, value)
        else:
            merged[key] = value
    return merged


def _validated(data: dict[str, Any], report: Report) -> Config:
    """Validate, cutting out what is wrong until the rest is valid: each round takes some away."""
    while True:
        try:
            return Config.model_validate(data)
        except ValidationError as error:
            for path, sentence in list(sentences(error, data)):
                if not report.knows(path):
                    report.add(path, sentence)
                _cut(data, path)


def _cut(data: dict[str, Any], path: KeyPath) -> None:
    """Remove the key at ``path``, a list with a wrong item whole; stand in for a missing key."""
    *outer, key = takewhile(lambda step: isinstance(step, str), path)
    section: Any = data
    for step in outer:
        section = section.get(step) if isinstance(section, dict) else None
    if not isinstance(section, dict):
        return  # gone already, with its owner
    if key in section:
        del section[key]
    else:
        section[key] = STAND_INS[key]
