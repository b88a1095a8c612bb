"""speaches by its preset, with models that say the same words whatever they hear."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from tests.real_services.behind import Setup, behind
from tests.support.broker_process import BrokerProcess
from tests.support.browser import Page, needs_chromium, page
from tests.support.installed import SPEACHES, needs_speaches
from tests.support.real_program import lives, real_program
from tests.support.recognition import recognised
from tests.support.servers import free_port
from tests.support.sounds import silence

SAID = "the cat sat on a mat"
"""By ``tiny_faster_whisper``."""
TINY, SLOW, BROKEN = "tests/tiny", "tests/slow", "tests/broken"
"""The second takes some ten seconds; the third cannot be loaded."""
SILENCE = silence(1)
VAD = "silero_vad_v5"
"""The model that looks for speech, which comes with speaches and with the first transcription."""
LOOKS = (
    *("/", "/api/ps", "/config", "/docs", "/health", "/openapi.json", "/theme.css"),
    *("/v1/audio/models", "/v1/audio/voices", "/v1/models", f"/v1/models/{TINY}", "/v1/realtime/"),
)
PAGES_OWN_404 = ("/manifest.json", "/gradio_api/upload_progress")
"""The page has no manifest, and asks how an upload gets on that may be over by then."""
CHECKOUT = SPEACHES.parent.parent.parent

pytestmark = [pytest.mark.real_services, pytest.mark.timeout(300), needs_speaches]


class Service(NamedTuple):
    url: str
    log: Path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it looks for models."""
    folder = tmp_path_factory.mktemp("huggingface")
    script = [SPEACHES.with_name("python"), Path(__file__).with_name("tiny_faster_whisper.py")]
    for model, layers in ((TINY, "1"), (SLOW, "120"), (BROKEN, "1")):
        subprocess.run([*script, folder, model, layers], check=True, timeout=120)
    (weights,) = folder.glob("hub/models--tests--broken/snapshots/*/model.bin")
    weights.write_bytes(weights.read_bytes()[:1000])
    return folder


def environment(home: Path, **more: str) -> dict[str, str]:
    offline = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    return {**offline, "PYANNOTE_METRICS_ENABLED": "0", "WHISPER__CPU_THREADS": "1", **more}


def command(port: int) -> list[str]:
    server = [str(SPEACHES), "--factory", "speaches.main:create_app"]
    return [*server, "--host", "127.0.0.1", "--port", str(port)]


@pytest.fixture(scope="module")
def speaches(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    port = free_port()
    service = Service(f"http://127.0.0.1:{port}", tmp_path_factory.mktemp("speaches") / "log")
    up, env = f"{service.url}/health", environment(home)
    with real_program(command(port), up=up, log=service.log, cwd=CHECKOUT, env=env):
        yield service


@pytest.fixture
async def empty(speaches: Service) -> Service:
    """It has nothing in memory."""
    for model in await loaded(speaches.url):
        await status_of(f"{speaches.url}/api/ps/{model}", "DELETE")
    assert await loaded(speaches.url) == []
    return speaches


@pytest.fixture
async def setup(empty: Service, tmp_path: Path) -> AsyncIterator[Setup]:
    async with behind(tmp_path, "speaches", empty.url, preset="speaches") as setup:
        yield setup


async def post(url: str, model: str, sound: Any = SILENCE, /, **fields: str) -> tuple[int, str]:
    """Its status and answer; the model is named behind the sound."""
    form = aiohttp.FormData()
    form.add_field("file", sound, filename="a.wav", content_type="audio/wav")
    for name, value in {"response_format": "text", **fields, "model": model}.items():
        form.add_field(name, value)
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/audio/transcriptions", data=form) as response,
    ):
        return response.status, (await response.text()).strip()


async def status_of(url: str, method: str = "GET") -> int:
    async with aiohttp.ClientSession() as session, session.request(method, url) as response:
        return response.status


async def loaded(url: str) -> list[str]:
    """Which models it has in memory, as it says itself."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/api/ps") as response:
        return list((await response.json())["models"])


async def refused_unload(broker: BrokerProcess) -> str:
    url = f"{broker.url}/api/consumers/speaches/unload"
    async with broker.session.post(url) as response:
        assert response.status >= 500
        return str((await response.json())["detail"])


async def until_listed(broker: BrokerProcess, name: str) -> None:
    async with asyncio.timeout(15):
        while True:
            async with broker.session.get(f"{broker.url}/v1/models") as response:
                if name in [each["id"] for each in (await response.json())["data"]]:
                    return
            await asyncio.sleep(0.05)


@pytest.fixture
def until_at_work(speaches: Service) -> Callable[[], Awaitable[None]]:
    """Waits until it transcribes, for the first time in this test: it says so in its log alone."""
    before = speaches.log.stat().st_size

    async def wait() -> None:
        async with asyncio.timeout(30):
            while b"Processing audio" not in told():  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    def told() -> bytes:
        return speaches.log.read_bytes()[before:]

    return wait


async def test_a_transcription_loads_its_model_and_an_unload_takes_out_each(setup: Setup) -> None:
    broker = setup.broker
    await until_listed(broker, TINY)
    assert (await broker.consumer("speaches"))["state"] == "absent"
    assert await post(broker.url, TINY) == (200, SAID)
    assert (await broker.consumer("speaches"))["state"] == "resident"
    assert await status_of(f"{setup.url}/api/ps/{SLOW}", "POST") == 201
    assert await loaded(setup.url) == [TINY, SLOW, VAD]

    await broker.unload("speaches")

    assert await loaded(setup.url) == []
    assert (await broker.consumer("speaches"))["state"] == "absent"
    assert await post(broker.url, TINY) == (200, SAID)
    assert (await broker.consumer("speaches"))["state"] == "resident"


async def test_with_a_model_a_load_is_over_when_it_is_there(empty: Service, tmp_path: Path) -> None:
    parameters = {"model": TINY}
    async with behind(
        tmp_path, "speaches", empty.url, preset="speaches", parameters=parameters
    ) as setup:
        for _ in range(2):
            await setup.broker.load("speaches")
            assert await loaded(setup.url) == [TINY]
        assert (await setup.broker.consumer("speaches"))["state"] == "resident"


async def test_looks_load_nothing(setup: Setup) -> None:
    assert [await status_of(setup.own_port + path) for path in LOOKS] == [200] * len(LOOKS)
    assert await loaded(setup.url) == []
    assert (await setup.broker.status())["loads"] == 0


async def test_a_large_sound_without_a_length_is_passed_on(setup: Setup) -> None:
    await until_listed(setup.broker, TINY)
    sound = silence(20, rate=192_000, channels=8)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(sound), 1 << 16):
            yield sound[start : start + (1 << 16)]

    assert await post(setup.broker.url, TINY, pieces()) == (200, SAID)


async def test_what_it_says_is_streamed_as_events(setup: Setup) -> None:
    status, text = await post(setup.own_port, TINY, stream="true")
    assert status == 200
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line]
    assert [event["type"] for event in events] == ["transcript.text.delta", "transcript.text.done"]
    assert events[0]["delta"].strip() == SAID


async def test_what_is_no_sound_and_what_is_no_model_get_its_own_answers(setup: Setup) -> None:
    status, answer = await post(setup.own_port, TINY, b"words")
    assert (status, "Failed to decode audio" in answer) == (415, True)
    status, answer = await post(setup.own_port, "tests/nowhere")
    assert (status, "is not installed locally" in answer) == (404, True)


async def test_an_unload_while_it_works_for_somebody_else_fails_and_that_one_is_answered(
    setup: Setup, until_at_work: Callable[[], Awaitable[None]]
) -> None:
    assert await status_of(f"{setup.url}/api/ps/{SLOW}", "POST") == 201
    await setup.broker.until("c['speaches']['state'] == 'resident'")
    elsewhere = asyncio.create_task(post(setup.url, SLOW))
    await until_at_work()

    assert "answered 409" in await refused_unload(setup.broker)

    assert SLOW not in await loaded(setup.url), "it is off the list while it computes"
    assert not elsewhere.done()
    assert await elsewhere == (200, SAID)
    await setup.broker.until("c['speaches']['state'] == 'absent'")


async def test_what_a_client_that_left_has_asked_is_computed_to_the_end(
    setup: Setup, until_at_work: Callable[[], Awaitable[None]]
) -> None:
    leaving = asyncio.create_task(post(setup.own_port, SLOW))
    await until_at_work()

    leaving.cancel()

    await setup.broker.until("c['speaches']['running'] == 0")
    assert await post(setup.own_port, TINY) == (200, SAID), "it does not wait for that"
    assert await status_of(f"{setup.url}/api/ps/{SLOW}", "DELETE") == 409, "it is still in use"


async def test_one_whose_load_failed_is_listed_until_the_second_unload(setup: Setup) -> None:
    assert (await post(setup.own_port, BROKEN))[0] == 500
    assert BROKEN in await loaded(setup.url)
    await setup.broker.until("c['speaches']['state'] == 'resident'")

    assert "answered 409" in await refused_unload(setup.broker)

    await setup.broker.until("c['speaches']['state'] == 'absent'")
    assert await loaded(setup.url) == []


@pytest.mark.parametrize("model", [TINY, TINY.replace("/", "%2F")])
@pytest.mark.parametrize(
    "request_", ["DELETE /api/ps/", "POST /api/ps/", "DELETE /v1/models/"], ids=str.split
)
async def test_what_would_unload_or_delete_a_model_is_refused(
    setup: Setup, request_: str, model: str
) -> None:
    method, path = request_.split()
    assert await status_of(setup.own_port + path + model, method) == 403
    assert await status_of(f"{setup.url}/v1/models/{TINY}") == 200


async def click(tab: Page, selector: str, text: str) -> None:
    """On the first element that has this text, as soon as there is one."""
    all_ = f"[...document.querySelectorAll('{selector}')]"
    found = f"{all_}.find(each => each.innerText.trim() === '{text}')"
    await tab.until(f"{found} !== undefined", within_s=60)
    await tab.evaluate(f"{found}.click()")


async def give_file(tab: Page, selector: str, file: Path) -> None:
    found = f"document.querySelector({json.dumps(selector)})"
    await tab.until(f"{found} !== null")
    handle = (await tab.call("Runtime.evaluate", expression=found))["result"]["objectId"]
    await tab.call("DOM.setFileInputFiles", files=[str(file)], objectId=handle)


@needs_chromium
async def test_its_open_page_holds_nobody_up_and_what_is_transcribed_there_is_a_job(
    setup: Setup, until_at_work: Callable[[], Awaitable[None]], tmp_path: Path
) -> None:
    sound = tmp_path / "a.wav"
    sound.write_bytes(SILENCE)
    broker = setup.broker
    async with page(tmp_path) as tab:
        await tab.goto(setup.own_port)
        await click(tab, "[role=tab]", "Speech-to-Text")
        await give_file(tab, "input[type=file][accept*=wav]", sound)
        await broker.until("c['speaches']['running'] == c['speaches']['queued'] == 0")

        await tab.until("document.querySelector('audio') !== null")
        await tab.type("input[aria-label=Model]", SLOW)
        await tab.until("document.querySelector('[role=option]') !== null")
        await tab.press_enter()
        await click(tab, "[role=tabpanel] button", "Generate")

        await until_at_work()
        assert (await broker.consumer("speaches"))["running"] == 1
        said = f"[...document.querySelectorAll('textarea')].some(e => /{SAID}/.test(e.value))"
        await tab.until(said, within_s=120)
        await broker.until("c['speaches']['running'] == 0")
        failed = [each.partition("?")[0] for each in tab.failed if setup.own_port in each]
        assert set(failed) <= {f"404 {setup.own_port}{path}" for path in PAGES_OWN_404}


async def test_it_is_recognised(speaches: Service) -> None:
    assert await recognised(speaches.url) == ["speaches"]


async def test_what_it_unloads_by_itself_is_noticed_and_it_ends_with_the_broker(
    home: Path, tmp_path: Path
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = environment(home, STT_MODEL_TTL="2")
    program: dict[str, Any] = {"command": command(port), "cwd": str(CHECKOUT), "environment": env}
    models = {TINY: "speaches"}
    async with behind(
        tmp_path, "speaches", url, models=models, preset="speaches", **program
    ) as setup:
        broker = setup.broker
        assert await post(broker.url, TINY) == (200, SAID)
        (pid,) = re.findall(r"Started server process \[(\d+)\]", broker.log)
        await broker.until("c['speaches']['state'] == 'absent'", within_s=30)
        assert await loaded(url) == [VAD]

        assert await post(broker.url, TINY) == (200, SAID)

        assert len(re.findall("Started server process", broker.log)) == 1
        assert lives(pid)
        await broker.stop(within_s=30)
        assert not lives(pid)
