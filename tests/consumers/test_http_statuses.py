"""Every status that a load or an unload may be answered with, without a server for each."""

from __future__ import annotations

from unittest.mock import Mock

import aiohttp
import pytest
from aioresponses import aioresponses

from mgpu.config.model import ConsumerConfig
from mgpu.consumers.http import HttpController
from mgpu.errors import LoadFailed, UnloadFailed
from mgpu.ports import Placement

URL = "http://127.0.0.1:9"
OK = (200, 202, 204)
NOT_OK = (201, 206, 301, 307, 400, 401, 403, 404, 408, 409, 422, 429, 500, 502, 503, 504)


class Response(aiohttp.ClientResponse):
    """aioresponses 0.7.9 does not know an argument that aiohttp 3.14 asks for."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        kwargs.setdefault("stream_writer", Mock(output_size=0))
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]


def controller(session: aiohttp.ClientSession) -> HttpController:
    section = {"url": URL, "load": {"path": "/load"}, "unload": {"path": "/unload"}}
    return HttpController("tts", ConsumerConfig.model_validate(section), session)


@pytest.mark.parametrize("status", OK)
async def test_is_accepted(status: int, session: aiohttp.ClientSession) -> None:
    with aioresponses() as service:
        service.post(f"{URL}/load", status=status, response_class=Response)
        service.post(f"{URL}/unload", status=status, response_class=Response)
        await controller(session).load(Placement())
        await controller(session).unload()
    assert sum(map(len, service.requests.values())) == 2


@pytest.mark.parametrize("status", NOT_OK)
async def test_is_a_failure_that_names_the_status(
    status: int, session: aiohttp.ClientSession
) -> None:
    with aioresponses() as service:
        service.post(f"{URL}/load", status=status, body="no room", response_class=Response)
        service.post(f"{URL}/unload", status=status, response_class=Response, repeat=True)
        with pytest.raises(LoadFailed, match=rf"tts.*/load.*{status}.*no room"):
            await controller(session).load(Placement())
        with pytest.raises(UnloadFailed, match=rf"tts.*/unload.*{status}"):
            await controller(session).unload()
