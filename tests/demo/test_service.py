import asyncio
import signal
from pathlib import Path

import pytest

from mgpu.demo.catalogue import Kind
from mgpu.demo.service import main
from tests.support.demo_service import DEADLINE_S, demo_service


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_cleanly_and_gives_its_memory_back(
    tmp_path: Path, number: signal.Signals
) -> None:
    async with demo_service(Kind.TTS, tmp_path) as service:
        (await service.http.post("/load")).raise_for_status()
        assert service.held_mib() > 0
        service.process.send_signal(number)
        assert await asyncio.wait_for(service.process.wait(), DEADLINE_S) == 0
        assert service.held_mib() == 0


async def test_a_signal_in_the_middle_of_a_long_job_ends_it_too(tmp_path: Path) -> None:
    async with demo_service(Kind.LANGUAGE, tmp_path, time_scale=0.3) as service:
        (await service.http.post("/load")).raise_for_status()
        body = {"messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 512}
        async with service.http.post("/v1/chat/completions", json=body) as answer:
            await answer.content.readline()
            service.process.terminate()
            assert await asyncio.wait_for(service.process.wait(), DEADLINE_S) == 0
        assert service.held_mib() == 0


async def test_a_client_that_leaves_ends_its_job(tmp_path: Path) -> None:
    async with demo_service(Kind.LANGUAGE, tmp_path, time_scale=0.3) as service:
        (await service.http.post("/load")).raise_for_status()
        body = {"messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 512}
        async with service.http.post("/v1/chat/completions", json=body) as answer:
            await answer.content.readline()
        # An unload comes after the running job, and all its tokens would take this long.
        all_tokens_s = service.profile.job_s * 512 / 48
        async with asyncio.timeout(all_tokens_s * 0.5):
            (await service.http.post("/unload")).raise_for_status()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["video", "--vram-dir", "."], "video"),
        (["tts"], "--vram-dir"),
        (["tts", "--vram-dir", ".", "--time-scale", "0"], "not greater than 0"),
    ],
)
def test_a_bad_command_line_is_refused_by_name(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert complaint in capsys.readouterr().err
