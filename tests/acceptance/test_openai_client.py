"""The official OpenAI client, unchanged but for its ``base_url``, in front of several services."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.acceptance.conftest import Machine
from tests.support.broker_process import BrokerProcess
from tests.support.openai_service import PICTURE, SOUND, OpenAiService

FOOTPRINT_MIB = 16_000
"""Two of these do not fit at the same time."""


@asynccontextmanager
async def client_of(broker: BrokerProcess, **how: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    options = {"api_key": "unused", "max_retries": 0, "timeout": 20.0, **how}
    async with openai.AsyncOpenAI(base_url=f"{broker.url}/v1", **options) as client:
        yield client


async def services(machine: Machine) -> tuple[OpenAiService, OpenAiService, OpenAiService]:
    text = await machine.service(OpenAiService, "text", FOOTPRINT_MIB, config={"models": {}})
    text.models = ("tiny-chat", "org/tiny:embed")
    image = await machine.service(OpenAiService, "image", FOOTPRINT_MIB)
    audio = await machine.service(OpenAiService, "sound", FOOTPRINT_MIB)
    return text, image, audio


MODELS = {"painter": "image", "speaker": "sound", "hearer": "sound"}


async def test_everything_the_client_does_reaches_the_service_of_its_model(
    machine: Machine, tmp_path: Path
) -> None:
    text, image, audio = await services(machine)
    broker = await machine.broker(models=MODELS)
    sound = tmp_path / "said.wav"
    recording = tmp_path / "recording.wav"
    recording.write_bytes(SOUND * 3)

    async with client_of(broker) as client:
        chat = await client.chat.completions.create(
            model="tiny-chat", messages=[{"role": "user", "content": "hello"}]
        )
        assert chat.choices[0].message.content == "You said hello"

        stream = await client.chat.completions.create(
            model="tiny-chat", messages=[{"role": "user", "content": "bye"}], stream=True
        )
        words = [chunk.choices[0].delta.content async for chunk in stream]
        assert words == ["You", " said ", "bye"]

        embedded = await client.embeddings.create(model="org/tiny:embed", input=["a", "bcd"])
        assert [each.embedding for each in embedded.data] == [[1.0, 0.5], [3.0, 0.5]]

        painted = await client.images.generate(model="painter", prompt="a tree")
        assert painted.data is not None
        assert base64.b64decode(painted.data[0].b64_json or "") == PICTURE
        edited = await client.images.edit(model="painter", prompt="x", image=("a.png", PICTURE))
        assert edited.data is not None

        async with client.audio.speech.with_streaming_response.create(
            model="speaker", voice="alloy", input="hello"
        ) as said:
            await said.stream_to_file(sound)
        assert sound.read_bytes() == SOUND

        with recording.open("rb") as file:
            heard = await client.audio.transcriptions.create(
                model="hearer", file=file, language="de"
            )
        assert heard.text == f"recording.wav of {3 * len(SOUND)} bytes in de"

    assert (text.jobs, image.jobs, audio.jobs) == (3, 2, 2)
    assert not machine.referee.fouls
    assert (await broker.status())["evictions"] == 2


async def test_the_models_are_those_configured_and_those_told(machine: Machine) -> None:
    await services(machine)
    broker = await machine.broker(models=MODELS)

    async with client_of(broker) as client:
        found = await client.models.retrieve("org/tiny:embed")
        assert (found.id, found.owned_by, found.object) == ("org/tiny:embed", "text", "model")
        listed = {model.id: model.owned_by async for model in client.models.list()}
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("tiny-chatt")

    assert listed == {**MODELS, "tiny-chat": "text", "org/tiny:embed": "text"}


async def test_an_unknown_model_is_an_error_that_says_what_there_is(machine: Machine) -> None:
    await services(machine)
    broker = await machine.broker(models=MODELS)

    async with client_of(broker) as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(
                model="paintre", messages=[{"role": "user", "content": "hello"}]
            )

    error = caught.value
    assert error.code == "urn:mgpu:unknown-model"
    assert str(error) == (
        "Error code: 404 - No consumer serves the model 'paintre'. Did you mean 'painter'?"
    )


async def test_a_key_is_given_as_the_client_gives_it(machine: Machine) -> None:
    await services(machine)
    keys = {"api_keys": ["right"]}
    broker = await machine.broker(ready=True, models=MODELS, server=keys)

    async with client_of(broker, api_key="right") as client:
        assert (await client.models.retrieve("painter")).owned_by == "image"
    async with client_of(broker, api_key="wrong") as client:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


async def test_a_full_queue_makes_the_client_come_back_when_it_is_told_to(
    machine: Machine,
) -> None:
    text, _, _ = await services(machine)
    broker = await machine.broker(models=MODELS | {"chat": "text"}, scheduler={"max_queue": 1})
    text.job_gate.close()

    async def ask(client: openai.AsyncOpenAI) -> str:
        answer = await client.chat.completions.create(
            model="chat", messages=[{"role": "user", "content": "x"}]
        )
        return answer.choices[0].message.content or ""

    async with client_of(broker) as impatient, client_of(broker, max_retries=3) as patient:
        first = asyncio.create_task(ask(impatient))
        await text.job_gate.reached()
        second = asyncio.create_task(ask(impatient))
        await broker.until("s['queue']")
        with pytest.raises(openai.RateLimitError) as refused:
            await ask(impatient)
        assert int(refused.value.response.headers["Retry-After"]) >= 1
        third = asyncio.create_task(ask(patient))
        await refusals(broker, 2)
        text.job_gate.open()
        assert set(await asyncio.gather(first, second, third)) == {"You said x"}


async def refusals(broker: BrokerProcess, count: int) -> None:
    """Return when so many jobs were refused."""
    async with asyncio.timeout(10):
        while True:
            async with broker.session.get(f"{broker.url}/metrics") as response:
                metrics = await response.text()
            if f'mgpu_jobs_total{{consumer="text",outcome="rejected"}} {count}.0' in metrics:
                return
            await asyncio.sleep(0.02)


async def test_a_client_that_gives_up_frees_its_place(machine: Machine) -> None:
    text, _, _ = await services(machine)
    broker = await machine.broker(models=MODELS)
    text.job_gate.close()

    async with client_of(broker, timeout=1.0) as client:
        with pytest.raises(openai.APITimeoutError):
            await client.chat.completions.create(
                model="tiny-chat", messages=[{"role": "user", "content": "x"}]
            )

    await broker.until("s['gpus'][0]['lock']['consumer'] is None", within_s=2)
    async with asyncio.timeout(5):
        await text.abortion.wait()
