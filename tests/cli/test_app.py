import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from mgpu.cli.app import COMMANDS

Mgpu = Callable[..., Awaitable[Any]]


def _run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mgpu", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )


def test_the_program_checks_a_file_and_ends_with_2(tmp_path: Path) -> None:
    (tmp_path / "broker.yaml").write_text("server: {listn: x}")

    done = _run("check", cwd=tmp_path)

    assert done.returncode == 2
    assert done.stdout == "broker.yaml:1: server.listn: unknown key; did you mean listen?\n"
    assert done.stderr == ""


def test_the_program_says_which_version_it_is(tmp_path: Path) -> None:
    done = _run("--version", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (0, f"mgpu {version('mgpu-broker')}\n")


@pytest.mark.parametrize("arguments", [["no-such-command"], ["check", "--no-such-option"], []])
async def test_bad_usage_is_exit_code_2(mgpu: Mgpu, arguments: list[str]) -> None:
    assert (await mgpu(*arguments)).exit_code == 2


async def test_help_names_every_command(mgpu: Mgpu) -> None:
    result = await mgpu("--help")

    assert result.exit_code == 0
    for command in ("serve", "check", "status", "load", "unload", "simulate"):
        assert f"  {command} " in result.stdout
    for command, (_, line) in COMMANDS.items():
        assert re.search(rf"^  {command} +{re.escape(line)}$", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
async def test_every_command_has_help_of_its_own(mgpu: Mgpu, command: str) -> None:
    result = await mgpu(command, "--help")

    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: mgpu {command} ")
    assert "Options:\n" in result.stdout


async def test_a_mistyped_command_is_guessed(mgpu: Mgpu) -> None:
    result = await mgpu("unlaod")

    assert result.exit_code == 2
    assert "Did you mean 'unload'" in result.stderr


@pytest.mark.parametrize("command", ["status", "jobs", "load"])
def test_a_client_command_loads_nothing_of_the_broker(tmp_path: Path, command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mgpu", command, "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=40,
        check=True,
    )
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}

    assert "mgpu.cli.client" in loaded
    assert not loaded & {"aiohttp", "mgpu.bootstrap", "mgpu.config.model", "mgpu.simulation"}
