from __future__ import annotations

import asyncio
import hashlib
import io
import json

import aiohttp
import pytest
from aiohttp import web

from mgpu.api.deps import Limits
from mgpu.config.openai import PATHS
from tests.api.conftest import Sites


async def echo_target(request: web.Request) -> web.StreamResponse:
    body = await request.read()
    digest = hashlib.sha256(body).hexdigest()
    return web.Response(text=f"{request.method} {request.raw_path} {len(body)} {digest}")


def echoed(path: str, body: bytes) -> str:
    return f"POST {path} {len(body)} {hashlib.sha256(body).hexdigest()}"


def upload(model_first: bool, size: int) -> tuple[bytes, str]:
    """A form with a file of this size, and its Content-Type."""
    parts = [
        b'Content-Disposition: form-data; name="model"\r\n\r\nvoice',
        b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + b"\x00\r" * size,
    ]
    ordered = parts if model_first else parts[::-1]
    body = b"".join(b"--xyz\r\n%b\r\n" % part for part in ordered) + b"--xyz--\r\n"
    return body, "multipart/form-data; boundary=xyz"


@pytest.mark.parametrize("path", PATHS)
async def test_the_model_names_the_consumer_on_every_route(sites: Sites, path: str) -> None:
    site = await sites.broker(await sites.upstream(echo_target), models={"voice": "tts"})
    body = b'{"input": "x",  "model":"voice"}'

    async with site.client.post(site.url(f"{path}?a=b"), data=body) as response:
        assert await response.text() == echoed(f"{path}?a=b", body)
        assert response.headers["X-MGPU-Consumer"] == "tts"
    assert site.broker.outcomes == {"job-1": "done"}


async def test_each_model_goes_to_its_own_consumer(sites: Sites) -> None:
    site = await sites.broker(
        others={"chat": {"url": await sites.upstream(echo_target)}},
        models={"voice": "tts", "big": "chat"},
    )

    async with site.client.post(
        site.url("/v1/chat/completions"), json={"model": "big"}
    ) as response:
        assert response.headers["X-MGPU-Consumer"] == "chat"
    assert site.broker.asked["job-1"].consumer == "chat"


async def test_a_consumer_may_have_the_route_elsewhere(sites: Sites) -> None:
    site = await sites.broker(
        await sites.upstream(echo_target),
        consumer={"paths": {"/v1/embeddings": "/embed dings"}},
        models={"voice": "tts"},
    )
    body = b'{"model": "voice"}'

    async with site.client.post(site.url("/v1/embeddings?x"), data=body) as response:
        assert await response.text() == echoed("/embed%20dings?x", body)
    async with site.client.post(site.url("/v1/rerank"), data=body) as response:
        assert await response.text() == echoed("/v1/rerank", body)


@pytest.mark.parametrize("model_first", [True, False])
@pytest.mark.parametrize("chunked", [True, False])
async def test_a_large_form_passes_unchanged_wherever_its_model_stands(
    sites: Sites, model_first: bool, chunked: bool
) -> None:
    site = await sites.broker(await sites.upstream(echo_target), models={"voice": "tts"})
    body, content_type = upload(model_first, 400_000)

    async def pieces() -> object:
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    async with site.client.post(
        site.url("/v1/audio/transcriptions"),
        data=pieces() if chunked else io.BytesIO(body),
        headers={"Content-Type": content_type},
    ) as response:
        assert await response.text() == echoed("/v1/audio/transcriptions", body)


async def test_a_job_waits_for_the_gpu_as_soon_as_its_model_has_come(sites: Sites) -> None:
    site = await sites.broker(await sites.upstream(echo_target), models={"voice": "tts"})
    await site.broker.hold()
    client = await site.raw()
    head = b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40\r\n\r\n"

    await client.send(head + b'{"input": ')
    await client.send(b'"", "model": "voice"')
    await site.broker.until(lambda broker: broker.waiting == ["job-1"])
    site.broker.let_go()
    await client.send(b"}".ljust(40 - 30))

    assert (await client.head()).status == 200


async def test_what_is_named_twice_later_on_ends_the_job(sites: Sites) -> None:
    site = await sites.broker(await sites.upstream(echo_target), models={"voice": "tts"})
    await site.broker.hold()
    client = await site.raw()

    await client.send(
        b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: 38\r\n\r\n"
        b'{"model": "voice", '
    )
    await site.broker.until(lambda broker: broker.waiting == ["job-1"])
    await client.send(b'"model": "other"}  ')

    status, document = await client.problem()
    assert (status, document["type"]) == (400, "urn:mgpu:bad-request")
    assert site.broker.outcomes == {"job-1": "cancelled"}


async def test_a_form_that_hides_its_model_behind_more_than_the_disk_takes_is_refused(
    sites: Sites,
) -> None:
    site = await sites.broker(
        await sites.upstream(echo_target),
        models={"voice": "tts"},
        limits=Limits(body_memory_bytes=1000, spool_bytes=10_000),
    )
    body, content_type = upload(model_first=False, size=2_000_000)

    async with site.client.post(
        site.url("/v1/audio/transcriptions"),
        data=io.BytesIO(body),
        headers={"Content-Type": content_type},
    ) as response:
        assert response.status == 507
        assert (await response.json(content_type=None))["type"] == "urn:mgpu:storage-full"
    assert not site.broker.asked


@pytest.mark.parametrize(
    ("body", "headers", "status", "kind"),
    [
        (b'{"model": "voic"}', {}, 404, "unknown-model"),
        (b'{"input": "x"}', {}, 400, "bad-request"),
        (b'{"model": 1}', {}, 400, "bad-request"),
        (b"", {}, 400, "bad-request"),
        (b'{"model": "voice"}', {"Content-Encoding": "gzip"}, 415, "unsupported-media-type"),
        (b'{"model": "voice"}', {"Content-Type": "multipart/form-data"}, 400, "bad-request"),
    ],
)
async def test_a_request_without_a_model_that_is_served_is_no_job(
    sites: Sites, body: bytes, headers: dict[str, str], status: int, kind: str
) -> None:
    site = await sites.broker(models={"voice": "tts"})

    async with site.client.post(
        site.url("/v1/chat/completions"), data=body, headers=headers
    ) as response:
        document = await response.json(content_type="application/problem+json")

    assert (response.status, document["type"]) == (status, f"urn:mgpu:{kind}")
    assert not site.broker.asked


async def test_a_problem_has_what_clients_of_openai_look_for_besides(sites: Sites) -> None:
    site = await sites.broker(models={"voice": "tts"})

    async with site.client.post(site.url("/v1/responses"), json={"model": "voic"}) as response:
        document = await response.json(content_type=None)

    assert "Did you mean 'voice'?" in document["detail"]
    assert document["error"] == {
        "message": document["detail"],
        "type": "urn:mgpu:unknown-model",
        "code": "urn:mgpu:unknown-model",
        "param": None,
    }
    assert response.headers["X-Should-Retry"] == "false"
    async with site.client.get(site.url("/consumers/none")) as response:
        assert "error" not in await response.json(content_type=None)


async def test_a_configured_route_is_more_than_a_model(sites: Sites) -> None:
    site = await sites.broker(
        await sites.upstream(echo_target),
        routes={"/v1/audio/speech": {"consumer": "tts", "path": "/say"}},
        models={"voice": "tts"},
    )
    body = b'{"model": "unheard of"}'

    async with site.client.post(site.url("/v1/audio/speech"), data=body) as response:
        assert await response.text() == echoed("/say", body)
    async with site.client.post(site.url("/v1/audio/speech/x"), data=b"") as response:
        assert await response.text() == echoed("/say/x", b"")


async def test_a_prefix_in_routes_has_the_models_too(sites: Sites) -> None:
    site = await sites.broker(
        await sites.upstream(echo_target), routes={"/v1": {"consumer": "tts", "path": "/v1"}}
    )

    for path in ("/v1/models", "/v1/models/x"):
        async with site.client.get(site.url(path)) as response:
            assert (await response.text()).startswith(f"GET {path} ")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/images/edits"])
async def test_another_method_is_a_405(sites: Sites, path: str) -> None:
    site = await sites.broker()

    async with site.client.get(site.url(path)) as response:
        assert response.status == 405
        assert response.headers["Allow"] == "POST"


async def test_a_stream_arrives_event_by_event(sites: Sites) -> None:
    go_on = asyncio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"n": 1}\n\n')
        await go_on.wait()
        await response.write(b"data: [DONE]\n\n")
        return response

    site = await sites.broker(await sites.upstream(stream), models={"voice": "tts"})

    async with (
        asyncio.timeout(5),
        site.client.post(
            site.url("/v1/chat/completions"), json={"model": "voice", "stream": True}
        ) as response,
    ):
        assert await response.content.readany() == b'data: {"n": 1}\n\n'
        assert site.broker.running == ["job-1"]
        go_on.set()
        assert await response.content.read() == b"data: [DONE]\n\n"


async def test_a_client_that_leaves_before_its_model_came_leaves_nothing(sites: Sites) -> None:
    site = await sites.broker(models={"voice": "tts"})
    client = await site.raw()

    await client.send(
        b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: 38\r\n\r\n{"
    )
    client.leave()

    async with site.client.get(site.url("/v1/models")) as response:
        assert response.status == 200
    assert not site.broker.asked


# Models


async def test_the_configured_models_are_listed_as_openai_does(sites: Sites) -> None:
    site = await sites.broker(models={"voice": "tts", "hf.co/a b": "tts"})

    async with site.client.get(site.url("/v1/models")) as response:
        document = await response.json()

    assert document["object"] == "list"
    assert [each["id"] for each in document["data"]] == ["voice", "hf.co/a b"]
    first = document["data"][0]
    assert (first["object"], first["owned_by"], type(first["created"])) == ("model", "tts", int)
    for path in ("hf.co/a%20b", "hf.co%2Fa%20b"):
        client = await site.raw()
        await client.send(f"GET /v1/models/{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = await client.head()
        body = json.loads(await client.read(int(head.get("Content-Length") or 0)))
        assert body == document["data"][1]
    async with site.client.get(site.url("/v1/models/voic")) as response:
        assert response.status == 404
        assert "Did you mean 'voice'?" in await response.text()


async def test_asking_for_models_is_no_job(sites: Sites) -> None:
    site = await sites.broker(models={"voice": "tts"})
    await site.broker.hold()

    async with site.client.head(site.url("/v1/models")) as response:
        assert response.status == 200
    assert not site.broker.asked


async def test_the_models_are_behind_the_key(sites: Sites) -> None:
    site = await sites.broker(models={"voice": "tts"}, api_keys=("k",))

    async with aiohttp.ClientSession() as client, client.get(site.url("/v1/models")) as response:
        assert response.status == 401
        assert (await response.json(content_type=None))["error"]["message"]
