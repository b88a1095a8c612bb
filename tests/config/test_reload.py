"""What can change while the broker runs, and what takes a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpu.config.load import load
from mgpu.config.model import Config
from mgpu.config.problems import InvalidConfig
from mgpu.config.reload import controlled_otherwise

FILE = """\
server: {{listen: "127.0.0.1:7070", drain_timeout_s: 5, {server}}}
gpu: {{cushion_mib: 100, {gpu}}}
scheduler: {{max_resident: 2, {scheduler}}}
consumers:
  tts: {{url: "http://127.0.0.1:8001", footprint_mib: 100, {tts}}}
  {other}
jobs: {{{jobs}}}
"""
SECTIONS = ("server", "gpu", "scheduler", "tts", "other", "jobs")


def write(path: Path, **changes: str) -> Path:
    path.write_text(FILE.format(**(dict.fromkeys(SECTIONS, "") | changes)))
    return path


@pytest.fixture
def running(tmp_path: Path) -> Config:
    return load(write(tmp_path / "broker.yaml"))


@pytest.mark.parametrize(
    ("section", "text", "problem"),
    [
        ("server", "listen: '127.0.0.1:1'", "1: server.listen"),
        ("server", "allowed_hosts: [gpu-box]", "1: server.allowed_hosts"),
        ("server", "api_keys: [secret]", "1: server.api_keys"),
        ("gpu", "backend: simulated", "2: gpu.backend"),
        ("gpu", "devices: [0]", "2: gpu.devices"),
        ("gpu", "lock: shared", "2: gpu.lock"),
        ("tts", "gpus: [0]", "5: consumers.tts.gpus"),
        ("tts", "systemd_unit: tts", "5: consumers.tts.systemd_unit"),
        ("tts", "vram_managed: true", "5: consumers.tts.vram_managed"),
        ("tts", "listen: '127.0.0.1:1'", "5: consumers.tts.listen"),
        ("tts", "container: tts", "5: consumers.tts.container"),
        ("tts", "command: serve", "5: consumers.tts.command"),
        (
            "other",
            "stt: {url: 'http://127.0.0.1:8002', listen: '127.0.0.1:1'}",
            "6: consumers.stt.listen",
        ),
        ("jobs", "database: other.db", "7: jobs.database"),
    ],
)
def test_what_is_fixed_is_refused_by_its_name(
    tmp_path: Path, running: Config, section: str, text: str, problem: str
) -> None:
    changed = {section: text}
    path = tmp_path / "broker.yaml"
    if section == "server" and "listen" in text:
        path.write_text(write(path).read_text().replace("127.0.0.1:7070", "127.0.0.1:1"))
    else:
        write(path, **changed)
    with pytest.raises(InvalidConfig) as raised:
        load(path, running=running)
    assert [str(one) for one in raised.value.problems] == [
        f"{path}:{problem}: cannot change while the broker runs: restart it"
    ]


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ("server", "max_body_mib: 1"),
        ("gpu", "settle_timeout_s: 1"),
        ("scheduler", "max_queue: 3, order: arrival, prefetch: false"),
        ("tts", "priority: 3, load: {path: /load}, can_coexist_with: [tts]"),
        ("tts", "not_activity: [GET /*], models: {}, paths: {/v1/rerank: /rerank}"),
        ("other", "stt: {url: 'http://127.0.0.1:8002', gpus: [0]}"),
    ],
)
def test_limits_rules_and_consumers_can_change(
    tmp_path: Path, running: Config, section: str, text: str
) -> None:
    new = load(write(tmp_path / "broker.yaml", **{section: text}), running=running)
    assert new != running


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cwd", "/tmp"),
        ("environment", "{X: y}"),
        ("stop_grace_s", "1"),
        ("load", "{path: /load}"),
        ("health", "{path: /health}"),
    ],
)
def test_how_a_program_is_controlled_is_fixed_as_well(tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "broker.yaml"
    running = load(write(path, tts="command: serve"))
    with pytest.raises(InvalidConfig) as raised:
        load(write(path, tts=f"command: serve, {key}: {value}"), running=running)
    (problem,) = raised.value.problems
    assert problem.key == f"consumers.tts.{key}"


def test_a_consumer_with_a_port_of_its_own_stays(tmp_path: Path) -> None:
    path = tmp_path / "broker.yaml"
    other = "stt: {url: 'http://127.0.0.1:8002', listen: '127.0.0.1:1'}"
    running = load(write(path, other=other))
    with pytest.raises(InvalidConfig) as raised:
        load(write(path), running=running)
    (problem,) = raised.value.problems
    assert (problem.key, problem.line) == ("consumers.stt.listen", 4)


def test_a_container_may_get_another_grace(tmp_path: Path) -> None:
    path = tmp_path / "broker.yaml"
    running = load(write(path, tts="container: tts"))
    new = load(write(path, tts="container: tts, stop_grace_s: 1"), running=running)
    assert controlled_otherwise(running, new) == {"tts"}


def test_who_is_new_or_controlled_in_another_way_is_known(tmp_path: Path, running: Config) -> None:
    path = tmp_path / "broker.yaml"
    other = {"other": "stt: {url: 'http://127.0.0.1:8002'}"}
    assert controlled_otherwise(running, load(write(path, **other))) == {"stt"}
    assert controlled_otherwise(running, load(write(path, tts="priority: 3"))) == frozenset()
    with_load = load(write(path, tts="load: {path: /load}"))
    assert controlled_otherwise(running, with_load) == {"tts"}
