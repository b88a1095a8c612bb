import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mgpu.demo.catalogue import Kind
from tests.support.demo_service import DemoService, demo_service

ROUTE = "/v1/chat/completions"
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Tell me about the harbour"}]}


@pytest.fixture
async def language(tmp_path: Path) -> AsyncIterator[DemoService]:
    async with demo_service(Kind.LANGUAGE, tmp_path) as service:
        (await service.http.post("/load")).raise_for_status()
        yield service


async def ask(language: DemoService, **more: Any) -> dict[str, Any]:
    async with language.http.post(ROUTE, json=ASK | more) as answer:
        assert answer.status == 200
        return dict(await answer.json())


async def test_it_answers_in_openais_shape(language: DemoService) -> None:
    answer = await ask(language, model="mine")
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "mine"
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert answer["usage"]["completion_tokens"] == len(choice["message"]["content"].split())
    assert choice["finish_reason"] in {"stop", "length"}


async def test_seed_and_limit_are_heeded(language: DemoService) -> None:
    answers = [(await ask(language, seed=seed))["choices"] for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]
    short = await ask(language, max_tokens=5)
    assert short["usage"]["completion_tokens"] == 5
    assert short["choices"][0]["finish_reason"] == "length"


async def test_a_stream_brings_the_same_words_one_at_a_time(language: DemoService) -> None:
    whole = await ask(language)
    async with language.http.post(ROUTE, json=ASK | {"stream": True}) as answer:
        assert answer.content_type == "text/event-stream"
        events = [line async for line in answer.content if line != b"\n"]
    assert all(event.startswith(b"data: ") for event in events)
    assert events[-1] == b"data: [DONE]\n"
    choices = [json.loads(event[6:])["choices"][0] for event in events[:-1]]
    words = [choice["delta"]["content"] for choice in choices[1:-1]]
    assert "".join(words) == whole["choices"][0]["message"]["content"]
    assert all(len(word.split()) == 1 for word in words)
    assert choices[0]["delta"]["role"] == "assistant"
    assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * len(choices[:-1])


async def test_the_first_token_is_sent_before_the_last_one_is_made(tmp_path: Path) -> None:
    async with demo_service(Kind.LANGUAGE, tmp_path, time_scale=0.1) as slow:
        (await slow.http.post("/load")).raise_for_status()
        body = ASK | {"stream": True, "max_tokens": 200}
        began = asyncio.get_running_loop().time()
        async with slow.http.post(ROUTE, json=body) as answer:
            await answer.content.readuntil(b'{"content": ')
            first_s = asyncio.get_running_loop().time() - began
            await answer.read()
            all_s = asyncio.get_running_loop().time() - began
        assert first_s < all_s / 2


async def test_an_unload_waits_for_the_running_stream(language: DemoService) -> None:
    async with language.http.post(ROUTE, json=ASK | {"stream": True}) as answer:
        await answer.content.readline()
        unloading = asyncio.create_task(language.http.post("/unload"))
        assert (await answer.read()).endswith(b"data: [DONE]\n\n")
    (await unloading).raise_for_status()
    await language.holds(language.profile.residual_mib)


async def test_a_bad_conversation_is_refused_by_name(language: DemoService) -> None:
    for messages in ([], [{"role": "user"}], None):
        async with language.http.post(ROUTE, json={"messages": messages}) as answer:
            assert answer.status == 400
            assert (await answer.json())["error"].startswith("messages")
