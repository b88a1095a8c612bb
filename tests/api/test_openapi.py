from __future__ import annotations

from typing import Any

from mgpu.api.jobs import known_paths
from tests.api.conftest import Sites


async def test_every_route_of_the_application_is_listed_and_nothing_else(sites: Sites) -> None:
    site = await sites.broker(
        routes={
            "/v1/tts": {"consumer": "tts", "path": "/tts"},
            "/v1/voices": {"consumer": "tts", "path": "/voices"},
        }
    )

    async with site.client.get(site.url("/openapi.json")) as response:
        document = await response.json()

    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) == set(known_paths(site.app))
    assert "/v1/voices" in document["paths"]


async def test_every_method_of_every_own_route_is_listed(sites: Sites) -> None:
    site = await sites.broker()
    async with site.client.get(site.url("/openapi.json")) as response:
        document = await response.json()

    for route in site.app.router.routes():
        assert route.resource is not None
        listed = document["paths"].get(route.resource.canonical)
        if route.method not in {"*", "HEAD"}:
            assert route.method.lower() in listed, route


async def test_every_reference_leads_somewhere(sites: Sites) -> None:
    site = await sites.broker()
    async with site.client.get(site.url("/openapi.json")) as response:
        document = await response.json()

    def references(part: Any) -> set[str]:
        match part:
            case {"$ref": str() as reference}:
                return {reference}
            case dict():
                return set().union(*map(references, part.values()))
            case list():
                return set().union(*map(references, part))
            case _:
                return set()

    found = references(document)
    assert found
    for reference in found:
        part = document
        for name in reference.removeprefix("#/").split("/"):
            part = part[name]


async def test_parameters_of_a_path_are_described(sites: Sites) -> None:
    site = await sites.broker()
    async with site.client.get(site.url("/openapi.json")) as response:
        document = await response.json()

    for path, operations in document["paths"].items():
        in_path = {part[1:-1] for part in path.split("/") if part.startswith("{")}
        for operation in operations.values():
            described = {
                parameter["name"]
                for parameter in operation.get("parameters", [])
                if parameter["in"] == "path"
            }
            assert described == in_path, path
