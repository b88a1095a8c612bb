"""What the documents say is compared with what the program has, in both directions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mgpu.config import presets, reload
from mgpu.config.model import (
    CompletionConfig,
    Config,
    ConsumerConfig,
    JobsConfig,
    ServerConfig,
)
from mgpu.core.model import ConsumerState
from mgpu.core.views import ConsumerView, GpuView, Snapshot
from mgpu.telemetry.metrics import Metrics
from tests.faults.kinds import Fault, label
from tests.faults.planted import all_planted, hints

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]
)

MAPPING_KEYS = {"consumers": "NAME", "routes": "PATH", "models": "MODEL", "workflows": "WORKFLOW"}


def table_rows(document: Path) -> Iterator[list[str]]:
    """The cells of each row whose first cell is code."""
    for line in document.read_text().splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in line.strip("| ").split(" | ")]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# Configuration


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in models_in(inner)]


def default_of(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    default = info.get_default(call_default_factory=True, validated_data={})
    plain = default.value if isinstance(default, Enum) else default
    return json.dumps(plain)


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key under its whole name, with its default."""
    for name, info in model.model_fields.items():
        key = prefix + name
        is_mapping = get_origin(info.annotation) is dict and name in MAPPING_KEYS
        inner_models = models_in(info.annotation)
        if is_mapping:
            key += f".{MAPPING_KEYS[name]}"
        for inner in inner_models:
            yield from keys_of(inner, f"{key}.")
        if is_mapping and not inner_models:
            yield key, "required"
        elif not is_mapping and not (inner_models and get_args(info.annotation) == ()):
            yield key, default_of(info)


def test_every_config_key_is_documented_with_its_default() -> None:
    rows = table_rows(ROOT / "docs" / "configuration.md")
    documented = {code(cells[0])[0]: cells[1].strip("`") for cells in rows if len(cells) == 3}
    assert documented == dict(keys_of(Config))


def test_what_takes_a_restart_is_documented() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    table = text.partition("| what changed | what happens |")[2].partition("\n\n")[0]
    broker, consumer, program = (set(code(row.split("|")[1])) for row in table.splitlines()[-3:])
    fixed = {".".join(map(str, path)) for path in reload._FIXED}
    free = {"server.max_body_mib", "server.drain_timeout_s"}
    server = {f"server.{key}" for key in ServerConfig.model_fields}
    jobs = {f"jobs.{key}" for key in JobsConfig.model_fields}
    assert server - free | jobs <= fixed
    assert broker == {"server", "max_body_mib", "drain_timeout_s", "jobs"} | fixed - server - jobs
    assert consumer == set(reload._FIXED_OF_A_CONSUMER)
    assert program == {"command", *reload._WAYS}


def test_the_examples_of_the_configuration_are_valid() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    examples = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert examples
    for example in examples:
        Config.model_validate(yaml.safe_load(example))


def test_the_examples_of_the_completions_are_valid() -> None:
    text = (ROOT / "docs" / "completions.md").read_text()
    whole, *parts = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    completions = [yaml.safe_load(part) for part in parts if "completion:" in part]
    (simple,) = [yaml.safe_load(part) for part in parts if "workflows:" in part]
    (graph,) = re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL)

    Config.model_validate(yaml.safe_load(whole))
    assert len(completions) == 2
    for each in completions:
        CompletionConfig.model_validate(each["completion"])
    for place in simple["consumers"]["comfyui"]["workflows"]["txt2img"]["places"].values():
        node, section, name = place.split(".")
        assert name in json.loads(graph)[node][section]


# Presets


def rows_of_presets(columns: int) -> list[list[str]]:
    """The rows of that table of docs/presets.md which has so many columns."""
    return [row for row in table_rows(ROOT / "docs" / "presets.md") if len(row) == columns]


def test_every_preset_is_documented_with_its_ports() -> None:
    documented = {code(row[0])[0]: row[2] for row in rows_of_presets(7)}
    built_in = [presets.find(path.stem, ROOT) for path in presets.BUILT_IN.glob("*.yaml")]
    assert documented == {found.name: ", ".join(map(str, found.preset.ports)) for found in built_in}


def test_every_preset_is_documented_with_what_it_can_do() -> None:
    for name, _, _, _, unload, resident, busy in rows_of_presets(7):
        given = presets.find(code(name)[0], ROOT).preset.consumer
        assert (unload != "none") == ("unload" in given), name
        assert (resident not in {"no", "remembered"}) == ("resident" in given), name
        assert (busy != "no") == ("busy" in given), name


def test_of_every_preset_it_is_said_how_it_is_known() -> None:
    names, ways, repositories, commits, _ = zip(*rows_of_presets(5), strict=True)

    assert [code(name)[0] for name in names] == sorted(
        path.stem for path in presets.BUILT_IN.glob("*.yaml")
    )
    assert set(ways) <= {"source", "observed", "documentation"}
    for name, repository, commit in zip(names, repositories, commits, strict=True):
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", repository), name
        assert re.match(r"[0-9a-f]{7}\b", commit), name


def test_every_key_of_a_preset_is_documented() -> None:
    assert [code(row[0])[0] for row in rows_of_presets(2)] == list(presets.Preset.model_fields)


# Metrics


def exposed_metrics() -> dict[str, tuple[str, tuple[str, ...]]]:
    gpu = GpuView(
        index=0,
        uuid="",
        name="",
        healthy=True,
        error=None,
        total_mib=1,
        free_mib=1,
        reserved_mib=0,
        foreign_mib=0,
        lock_consumer=None,
        lock_jobs=(),
    )
    consumers = {
        name: ConsumerView(
            name=name,
            state=ConsumerState.ABSENT,
            healthy=True,
            footprint_mib=1,
            measured_mib=1,
            gpus=(),
            running=0,
            queued=0,
            last_used_s=None,
            pinned=False,
        )
        for name in ("a", "b")
    }
    snapshot = Snapshot(
        gpus=(gpu,), consumers=consumers, queue=(), queued=0, draining=False, evictions=0, loads=0
    )
    registry = CollectorRegistry()
    config = {name: ConsumerConfig(url="http://127.0.0.1:1") for name in consumers}
    Metrics(registry, config).watch(lambda: snapshot)
    exposed = {}
    for family in registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        exposed[name] = (family.type, tuple(sorted(labels)))
    return exposed


def test_every_metric_is_documented_with_its_type_and_labels() -> None:
    documented = {
        code(cells[0])[0]: (cells[1], tuple(sorted(code(cells[2]))))
        for cells in table_rows(ROOT / "docs" / "metrics.md")
    }
    assert documented == exposed_metrics()


# Architecture


def modules_of(part: str) -> set[str]:
    return {path.stem for path in (ROOT / "mgpu" / part).glob("*.py")} - {"__init__"}


def rows_of_architecture(heading: str) -> list[list[str]]:
    """The cells of the rows of the first table below a heading."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text.partition(f"\n## {heading}\n")[2].partition("\n|---")[2].partition("\n\n")[0]
    return [row.strip("|").split("|") for row in table.splitlines()[1:]]


def test_every_module_of_the_core_is_named_in_the_architecture() -> None:
    named = [name for modules, _ in rows_of_architecture("The core") for name in code(modules)]
    assert sorted(named) == sorted(modules_of("core"))


def test_every_module_of_the_shell_is_named_in_the_architecture() -> None:
    named: dict[str, list[str]] = {}
    part = ""
    for first, _, modules in rows_of_architecture("The shell"):
        part = code(first)[0] if code(first) else part
        named.setdefault(part, []).extend(re.findall(r"`(\w+)`", modules))
    assert {"api", "broker", "config", "consumers"} <= named.keys()
    for part, names in named.items():
        assert sorted(names) == sorted(modules_of(part)), part


# All documents


def test_the_readme_begins_with_the_command_that_shows_the_program_at_work() -> None:
    fence = re.search(
        r"^```[a-z]*\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert fence is not None
    assert fence.group(1).startswith("scripts/demo")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_files_and_headings_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    dead = [target for target in targets if not leads_somewhere(document, target)]
    assert dead == []


def leads_somewhere(document: Path, target: str) -> bool:
    if re.match(r"[a-z]+:", target):
        return True
    path, _, heading = target.partition("#")
    file = (document.parent / path) if path else document
    return file.exists() and (not heading or heading in anchors_of(file))


def anchors_of(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# The scheduler under faults


def test_every_fault_is_documented_as_it_is_told() -> None:
    rows = {code(cells[0])[0]: cells[1:] for cells in table_rows(ROOT / "docs" / "simulation.md")}
    assert {label(fault): [fault.value] for fault in Fault}.items() <= rows.items()


def test_every_planted_bug_is_documented_with_the_seed_that_found_it() -> None:
    rows = {code(cells[0])[0]: cells[1:] for cells in table_rows(ROOT / "docs" / "simulation.md")}
    found = {bug.name: [bug.title, str(hints()[bug.name])] for bug in all_planted()}
    assert found.items() <= rows.items()
