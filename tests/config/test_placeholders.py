"""Whatever is put into a request, it stays where it was put."""

from __future__ import annotations

from typing import Any

import jmespath
import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from mgpu.config.placeholders import BadValueError, fill, names_in
from mgpu.consumers.wire import url_of

ORIGIN = "http://127.0.0.1:8001"
HOSTILE = st.text(st.sampled_from("ab/\\.@:?#%&=[]{}'\"é \t\r\n\x00") | st.characters())


@given(HOSTILE)
def test_a_value_in_a_path_leads_neither_to_another_host_nor_out_of_its_place(value: str) -> None:
    try:
        filled = fill({"path": "/models/{m}/unload?a=1"}, {"m": value})
    except BadValueError:
        assert any(segment in {"", ".", ".."} for segment in value.split("/"))
        return
    url = url_of(ORIGIN, filled["path"])
    assert str(url.origin()) == ORIGIN
    assert (url.user, url.password, url.fragment) == (None, None, "")
    assert url.raw_path.startswith("/models/")
    assert url.raw_path.endswith("/unload")
    assert url.path_safe.count("/") == 3 + value.count("/")
    assert url.query_string == "a=1"


@given(HOSTILE)
def test_a_value_in_a_query_stays_one_value(value: str) -> None:
    path = fill({"path": "/x?m={m}&n=1"}, {"m": value})["path"]
    url = url_of(ORIGIN, path)
    assert str(url.origin()) == ORIGIN
    assert url.raw_path == "/x"
    assert list(url.query) == ["m", "n"]


@given(HOSTILE)
def test_a_value_in_an_expression_does_not_end_its_quotes(value: str) -> None:
    filled = fill({"when": "name == '{m}'"}, {"m": value})["when"]
    if value.endswith("\\"):
        return  # a raw string cannot hold it: the expression does not compile, and that is told
    assert jmespath.search(filled, {"name": value}) is True


@given(HOSTILE)
def test_anywhere_else_it_is_text(value: str) -> None:
    body = {"a": ["{m}", {"b": "<{m}>"}], "n": 1, "none": None}
    assert fill({"body": body}, {"m": value}) == {
        "body": {"a": [value, {"b": f"<{value}>"}], "n": 1, "none": None}
    }


@pytest.mark.parametrize("text", ["{other}", "{M}", "{}", "{ m }", "{m", "{a: m}"])
def test_other_braces_are_left_alone(text: str) -> None:
    assert fill(text, {"m": "x"}) == text


def test_a_value_is_not_filled_again() -> None:
    assert fill("{a}{b}", {"a": "{b}", "b": "2"}) == "{b}2"


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("{a} {b} {a}", ["a", "b", "a"]),
        ({"x": ["{a}", {"y": "{b}"}]}, ["a", "b"]),
        ({"{a}": 1}, []),
        (None, []),
    ],
)
def test_the_names_in_a_value_are_found(value: Any, names: list[str]) -> None:
    assert list(names_in(value)) == names


@pytest.mark.parametrize("port", [None, 9000])
def test_another_port_is_of_the_same_host(port: int | None) -> None:
    assert url_of(ORIGIN, "/a?b", port) == URL(f"http://127.0.0.1:{port or 8001}/a?b")
