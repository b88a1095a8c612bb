from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgpu.config.patterns import Patterns, parse


@pytest.mark.parametrize(
    ("pattern", "request_line", "matches"),
    [
        ("GET /queue", "GET /queue", True),
        ("GET /queue", "POST /queue", False),
        ("GET /queue", "HEAD /queue", False),
        ("GET /queue", "GET /queue/", False),
        ("GET /queue", "GET /queue/x", False),
        ("GET /queue", "GET /QUEUE", False),
        ("GET /history*", "GET /history", True),
        ("GET /history*", "GET /history/a/b", True),
        ("GET /history*", "GET /histori", False),
        ("GET,HEAD /view*", "HEAD /view", True),
        ("GET,HEAD /view*", "POST /view", False),
        ("* /internal/*", "DELETE /internal/x", True),
        ("* /internal/*", "DELETE /internal", False),
        ("GET /*.js", "GET /assets/a.js", True),
        ("GET /*.js", "GET /assets/a.js/x", False),
        ("GET /a*b*c", "GET /a1b2c", True),
        ("GET /a*b*c", "GET /abc", True),
        ("GET /a*b*c", "GET /abb1cc", True),
        ("GET /a*b*c", "GET /acb", False),
        ("GET /", "GET /", True),
        ("GET /", "GET /x", False),
        ("POST /über*", "POST /über/x", True),
        ("GET /a.b", "GET /axb", False),
        ("GET /a*", "GET /a\nb", True),
    ],
)
def test_a_pattern_is_methods_and_a_path_with_stars(
    pattern: str, request_line: str, matches: bool
) -> None:
    method, _, path = request_line.partition(" ")

    assert Patterns([pattern]).match(method, path) is matches


def test_any_of_several_is_enough_and_none_matches_nothing() -> None:
    several = Patterns(["GET /a", "POST /b*"])

    assert several.match("GET", "/a")
    assert several.match("POST", "/bc")
    assert not several.match("POST", "/a")
    assert not Patterns([]).match("GET", "/a")


@pytest.mark.parametrize(
    "line",
    ["/queue", "get /queue", "GET queue", "GET  /queue", "GET, /queue", "GRAB /x", "GET /?x"],
)
def test_anything_else_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="must be METHOD /PATH"):
        parse(line)


@given(st.lists(st.text("ab/", max_size=3), min_size=1, max_size=5), st.text("ab/", max_size=12))
def test_a_star_stands_for_any_characters(parts: list[str], rest: str) -> None:
    def expected(parts: list[str], text: str) -> bool:
        first, *others = parts
        if not others:
            return text == first
        if not text.startswith(first):
            return False
        return any(expected(others, text[at:]) for at in range(len(first), len(text) + 1))

    path = "/" + "*".join(parts)

    assert Patterns([f"GET {path}"]).match("GET", f"/{rest}") is expected(
        ["/" + parts[0], *parts[1:]], f"/{rest}"
    )


def test_a_path_made_to_be_slow_is_not() -> None:
    assert not Patterns(["GET /" + "*a" * 30]).match("GET", "/" + "a" * 4000 + "b")
