from __future__ import annotations

import pytest

from mgpu.api.paths import read_target
from mgpu.api.routes import Routes, did_you_mean
from mgpu.config.model import Config
from mgpu.config.residency import load_body
from mgpu.errors import UnknownConsumer

ROUTES = Routes(
    Config.model_validate(
        {
            "consumers": {
                "tts": {
                    "url": "http://127.0.0.1:8001",
                    "not_activity": ["GET /queue", "GET /history/*", "POST /über*"],
                },
                "image": {"url": "http://[::1]:8188/"},
            },
            "routes": {
                "/v1/tts": {"consumer": "tts", "path": "/tts"},
                "/v1/tts/long": {"consumer": "tts", "path": "/long/"},
                "/v1/image/": {"consumer": "image", "path": "/"},
                "/sp ace": {"consumer": "tts", "path": "/a b"},
            },
        }
    )
)


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("/v1/tts", "http://127.0.0.1:8001/tts"),
        ("/v1/tts/", "http://127.0.0.1:8001/tts/"),
        ("/v1/tts/a/b%20c?d=e%2F", "http://127.0.0.1:8001/tts/a/b%20c?d=e%2F"),
        ("/%76%31/tt%73/x", "http://127.0.0.1:8001/tts/x"),
        ("/v1/tts/long", "http://127.0.0.1:8001/long"),
        ("/v1/tts/long/x", "http://127.0.0.1:8001/long/x"),
        ("/v1/tts/longer", "http://127.0.0.1:8001/tts/longer"),
        ("/v1/image", "http://[::1]:8188/"),
        ("/v1/image/x?y", "http://[::1]:8188/x?y"),
        ("/sp%20ace/x", "http://127.0.0.1:8001/a%20b/x"),
        ("/v1/tts/@evil.example/", "http://127.0.0.1:8001/tts/@evil.example/"),
        ("/v1/tts/http:x", "http://127.0.0.1:8001/tts/http:x"),
    ],
)
def test_the_longest_configured_path_decides_and_the_rest_is_appended_as_sent(
    path: str, url: str
) -> None:
    found = ROUTES.job(read_target(path))

    assert found is not None
    assert str(found[1]) == url


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/ttsx", "/v1/TTS", "/v2/tts", "/tts"])
def test_a_path_matches_only_on_whole_segments(path: str) -> None:
    assert ROUTES.job(read_target(path)) is None


@pytest.mark.parametrize(
    ("method", "path", "activity"),
    [
        ("GET", "/queue", False),
        ("POST", "/queue", True),
        ("GET", "/queue/", True),
        ("GET", "/queue/x", True),
        ("GET", "/queued", True),
        ("GET", "/history/", False),
        ("GET", "/history/a/b", False),
        ("GET", "/history", True),
        ("POST", "/über/x", False),
    ],
)
def test_what_is_no_activity_is_listed_by_method_and_path(
    method: str, path: str, activity: bool
) -> None:
    assert ROUTES.upstream("tts").is_activity(method, path) is activity


def test_an_unknown_consumer_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(UnknownConsumer, match="Did you mean 'image'"):
        ROUTES.upstream("imagr")


def test_nothing_near_gives_no_advice() -> None:
    assert did_you_mean("zzzz", ["tts"]) == ""


def test_the_jobs_of_a_route_want_their_consumer_loaded_with_its_options() -> None:
    consumer = {
        "url": "http://127.0.0.1:8001",
        "load": {"path": "/load", "body": {"ctx": 1}},
        "unload": {"path": "/unload"},
    }
    long = {"consumer": "llm", "path": "/chat", "load_body": {"ctx": 2}}
    plain = {"consumer": "llm", "path": "/chat"}
    config = {"consumers": {"llm": consumer}, "routes": {"/long": long, "/plain": plain}}
    routes = Routes(Config.model_validate(config))

    keys = [job[0].load_key for p in ("/long", "/plain") if (job := routes.job(read_target(p)))]

    assert keys[1] is None
    assert keys[0] is not None
    assert load_body(keys[0]) == {"ctx": 2}
    assert routes.upstream("llm").load_key is None
