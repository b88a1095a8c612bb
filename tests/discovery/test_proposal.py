"""The file that is proposed: what it says of each service, and that nothing breaks it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mgpu.config import presets
from mgpu.config.load import load
from mgpu.config.model import Config
from mgpu.config.presets import CHANGE_ME
from mgpu.core.model import GpuProcess, GpuReading
from mgpu.discovery.homes import Home
from mgpu.discovery.listeners import Listener
from mgpu.discovery.proposal import Proposal, comment, describe, scalar
from mgpu.discovery.survey import Service, Stranger, Survey

NOWHERE = Path("/nowhere")


def service(preset: str = "comfyui", port: int = 8188, **keys: Any) -> Service:
    listener = Listener(port, ("127.0.0.1",), exposed=False, process="python3")
    found = presets.find(preset, NOWHERE)
    made = Service(preset, f"http://127.0.0.1:{port}", (found,), listener, Home())
    return replace(made, **keys)


def text_of(*services: Service, gpus: tuple[GpuReading, ...] = (), **keys: Any) -> str:
    found = Survey(services=services, **keys)
    return Proposal(found, gpus, "no driver", Path("broker.yaml")).text()


def config_of(text: str, folder: Path) -> Config:
    path = folder / "broker.yaml"
    path.write_text(text)
    return load(path)


@pytest.mark.parametrize("name", presets.names(NOWHERE))
def test_every_preset_gives_a_file_that_is_valid_once_it_is_filled_in(
    name: str, tmp_path: Path
) -> None:
    config = config_of(text_of(service(name)).replace(CHANGE_ME, "filled-in"), tmp_path)

    assert config.consumers[name].preset == name
    assert config.consumers[name].listen == "127.0.0.1:18188"


def test_a_unit_is_filled_in_with_what_to_check(tmp_path: Path) -> None:
    text = text_of(service(home=Home(unit="comfyui.service", scope="user")))

    consumer = config_of(text, tmp_path).consumers["comfyui"]
    assert (consumer.systemd_unit, consumer.systemd_scope) == ("comfyui.service", "user")
    assert "# ComfyUI at http://127.0.0.1:8188 (process python3, user unit comfyui.service)" in text
    assert "# Stopping comfyui.service must stop just this service" in text


def test_a_container_is_filled_in(tmp_path: Path) -> None:
    text = text_of(service("whisper-cpp", 8080, home=Home(container="whisper")))

    assert config_of(text, tmp_path).consumers["whisper-cpp"].container == "whisper"
    assert "No request frees its VRAM" not in text


def test_one_that_nothing_can_evict_is_said_to_need_a_way() -> None:
    assert "No request frees its VRAM" in text_of(service("whisper-cpp", 8080))


def test_one_that_other_machines_reach_is_said_to_need_more_than_a_port() -> None:
    exposed = Listener(8188, ("127.0.0.1",), exposed=True)

    assert "0.0.0.0:18188, server.api_keys" in " ".join(
        text_of(service(listener=exposed)).replace("#", "").split()
    )


def test_ports_that_are_taken_are_not_proposed(tmp_path: Path) -> None:
    taken = frozenset({7070, 8188, 18188, 17000})
    config = config_of(text_of(service(), service("vllm", 60000), taken=taken), tmp_path)

    assert config.server.listen == "127.0.0.1:17070"
    assert config.consumers["comfyui"].listen == "127.0.0.1:17001"
    assert config.consumers["vllm"].listen == "127.0.0.1:17002"


def test_a_broker_that_runs_does_not_change_the_brokers_port(tmp_path: Path) -> None:
    text = text_of(service(), taken=frozenset({7070}), brokers=(7070,))

    assert config_of(text, tmp_path).server.listen == "127.0.0.1:7070"


def test_a_path_that_two_have_goes_to_the_first_and_the_other_is_a_comment(
    tmp_path: Path,
) -> None:
    text = text_of(service("automatic1111", 7860), service("sdnext", 7861))

    assert config_of(text, tmp_path).routes["/v1/txt2img"].consumer == "automatic1111"
    assert "  # /v1/txt2img: {consumer: sdnext, path: /sdapi/v1/txt2img}\n" in text


def test_a_service_that_has_openais_path_elsewhere_is_asked_there(tmp_path: Path) -> None:
    config = config_of(text_of(service("infinity", 7997, models=("bge",))), tmp_path)

    assert config.consumers["infinity"].paths["/v1/embeddings"] == "/embeddings"
    assert not config.routes, "whose model it is decides"


KOKORO = ("tts-1", "tts-1-hd", "kokoro", "gpt-4o-mini-tts")


def test_what_clients_ask_for_of_one_that_names_no_models_is_written_down(tmp_path: Path) -> None:
    text = text_of(service("speaches", 8000, models=("small",)), service("whisper-cpp", 8080))

    config = config_of(text, tmp_path)
    assert dict(config.models) == {"whisper-1": "whisper-cpp"}
    assert "whisper-1: whisper-cpp  # asked for as OpenAI's clients do (its issue 3458)" in text
    assert "/v1/audio/transcriptions" not in config.routes


def test_what_its_path_leads_to_needs_no_model(tmp_path: Path) -> None:
    config = config_of(text_of(service("whisper-cpp", 8080)), tmp_path)

    assert config.routes["/v1/audio/transcriptions"].path == "/inference"
    assert not config.models


def test_a_name_that_one_tells_and_another_is_asked_for_by_goes_to_the_first(
    tmp_path: Path,
) -> None:
    text = text_of(
        service("chatterbox-tts-api", 4123, models=("chatterbox-tts-1",)),
        service("kokoro-fastapi", 8880, models=KOKORO),
    )

    assert dict(config_of(text, tmp_path).models) == {
        "tts-1": "kokoro-fastapi",
        "tts-1-hd": "kokoro-fastapi",
    }
    assert "tts-1: kokoro-fastapi  # or chatterbox-tts-api" in text


def test_its_models_are_written_down_as_a_comment_with_an_end() -> None:
    text = text_of(service("kokoro-fastapi", 8880, models=KOKORO))
    assert "# Its models: tts-1, tts-1-hd, kokoro, gpt-4o-mini-tts\n" in text

    many = tuple(f"model-{number}" for number in range(500))
    text = " ".join(text_of(service("ollama", 11434, models=many)).replace("#", "").split())
    assert "model-10, model-11 and 488 more" in text


def test_its_only_model_is_likely_to_be_meant(tmp_path: Path) -> None:
    config = config_of(text_of(service("tabbyapi", 5000, models=("qwen: 3",))), tmp_path)

    assert config.consumers["tabbyapi"].parameters == {"model": "qwen: 3"}


def test_gpus_are_named() -> None:
    gpus = (
        GpuReading(index=0, name="NVIDIA GeForce RTX 3090", total_mib=24576),
        GpuReading(index=1, error="fallen off the bus"),
    )

    text = text_of(service(), gpus=gpus)
    assert "# GPU 0: NVIDIA GeForce RTX 3090, 24576 MiB\n# GPU 1: fallen off the bus\n" in text
    assert "# No NVIDIA GPU was found: no driver\n" in text_of(service())


def test_what_it_holds_just_now_is_said(tmp_path: Path) -> None:
    holders = (GpuProcess(7, 4000), GpuProcess(8, 96), GpuProcess(9, 100), GpuProcess(10, None))
    gpus = (GpuReading(index=0, name="GPU", total_mib=8192, processes=holders),)

    text = text_of(service(pids=frozenset({7, 8, 10})), gpus=gpus)
    assert "# It holds 4096 MiB of VRAM just now" in text
    assert config_of(text, tmp_path).consumers["comfyui"].footprint_mib == "auto"


def test_what_is_not_known_is_a_comment_at_the_end() -> None:
    stranger = Stranger(
        "http://127.0.0.1:8000", "uvicorn", wants_a_key=True, usual=("vllm", "triton")
    )

    text = text_of(service(), strangers=(stranger,), parts=(("http://127.0.0.1:7821", "swarmui"),))
    assert "# http://127.0.0.1:7821 was started by swarmui and belongs to it.\n" in text
    assert describe(stranger) == (
        "http://127.0.0.1:8000 (uvicorn) is not known; it wants a key, so it may be one of those "
        "that are; by default vllm or triton would be there"
    )


def test_no_name_from_outside_can_end_a_comment_or_a_text(tmp_path: Path) -> None:
    evil = Listener(8188, ("127.0.0.1",), exposed=False, process="x\nconsumers: {}\r\u2028y: 1")
    text = text_of(
        service(listener=evil, models=("a\n: b", "on", "#", "*a")),
        service("ollama", 11434, models=("a\n: b", "on", "#", "*a")),
    )

    assert list(config_of(text, tmp_path).models) == ["a\n: b", "on", "#", "*a"]


@pytest.mark.parametrize(
    "text", ["plain", "a/b:c", "yes", "null", "1", "0x1", "a: b", "a #b", "é", "", "{x}", "-", "~"]
)
def test_a_text_comes_back_as_it_was(text: str) -> None:
    assert yaml.safe_load(f"key: {scalar(text)}") == {"key": text}


def test_comments_are_lines_of_a_bearable_width() -> None:
    lines = list(comment("word " * 60 + "x" * 200, 2))

    assert all(line.startswith("  # ") for line in lines)
    assert all(len(line) <= 96 for line in lines[:-1])
