"""``mgpu pause`` and ``mgpu resume``: the person wants the GPU, and gives it back."""

from __future__ import annotations

from mgpu.cli import output
from mgpu.cli.client import Client
from mgpu.cli.consumers import DEFAULT_WAIT_S, Wait
from mgpu.cli.options import DEFAULT_URL, Url

TIMEOUT_S = 10.0


def pause(*, url: Url = DEFAULT_URL, wait: Wait = DEFAULT_WAIT_S) -> None:
    """Let running jobs end, take every consumer out of VRAM, and hold the queue.

    Only mgpu resume ends it, no restart of the broker does.
    """
    client = Client.at(url)
    with output.console(stderr=True).status("Waiting for running jobs and unloads ..."):
        answer = client.post("/api/pause", timeout_s=wait)
    if isinstance(answer, dict) and answer.get("paused") is False:
        output.say("The pause was ended meanwhile: the broker serves jobs")
        return
    resident = answer.get("resident") if isinstance(answer, dict) else None
    if resident:
        output.say(f"Still in VRAM, as it could not be unloaded: {', '.join(resident)}")
    whose = "the rest of the VRAM" if resident else "the VRAM"
    output.say(f"Paused: nothing computes, and {whose} is yours. To go on: mgpu resume")


def resume(*, url: Url = DEFAULT_URL) -> None:
    """Serve jobs again."""
    Client.at(url).post("/api/resume", timeout_s=TIMEOUT_S)
    output.say("Resumed: the queue is served again. mgpu status shows it")
