from typing import Any

import pytest

from mgpu.config.template import (
    MAX_VALUE_CHARS,
    UnfitValueError,
    fill_body,
    fill_path,
    has_stray_brace,
    names_in,
)


@pytest.mark.parametrize(
    ("template", "values", "path"),
    [
        ("/history/{id}", {"id": "a-1"}, "/history/a-1"),
        ("/jobs/{id}/result", {"id": 7}, "/jobs/7/result"),
        ("/view?name={name}&sub={sub}", {"name": "a b.png"}, "/view?name=a%20b.png&sub="),
        ("/history/{id}", {"id": "../x?y#z"}, "/history/..%2Fx%3Fy%23z"),
        ("/history/{id}", {"id": "%2e%2e/é"}, "/history/%252e%252e%2F%C3%A9"),
        ("/view?name={name}", {"name": "a&b=../c"}, "/view?name=a%26b%3D..%2Fc"),
        ("/a b/{id}#x", {"id": "{id}"}, "/a%20b/%7Bid%7D%23x"),
        ("/a%20b/{id}", {"id": "1"}, "/a%20b/1"),
    ],
)
def test_a_value_stays_in_its_place(template: str, values: dict[str, Any], path: str) -> None:
    assert fill_path(template, values) == path


@pytest.mark.parametrize(
    "value", ["..", ".", [], {}, 1.5, True, None, "x" * (MAX_VALUE_CHARS + 1), "\ud800"]
)
def test_a_value_that_cannot_stand_in_a_path_is_refused(value: Any) -> None:
    with pytest.raises(UnfitValueError):
        fill_path("/history/{id}", {"id": value})


def test_no_value_makes_the_path_end_elsewhere() -> None:
    with pytest.raises(UnfitValueError, match="dot segment"):
        fill_path("/a/{x}{y}/b", {"x": ".", "y": "."})


def test_a_body_is_filled_in_its_texts_only() -> None:
    body = {"delete": ["{id}", 1], "{id}": "x-{id}", "all": True}
    assert fill_body(body, {"id": "7"}) == {"delete": ["7", 1], "{id}": "x-7", "all": True}


def test_names_are_found_wherever_they_stand() -> None:
    assert names_in({"a": ["{id}", 1], "b": "/x/{name}?{name}"}) == {"id", "name"}
    assert names_in(None) == frozenset()


@pytest.mark.parametrize("path", ["/{id", "/id}", "/{}", "/{a b}", "/{id}}"])
def test_a_stray_brace_is_seen(path: str) -> None:
    assert has_stray_brace(path)
    assert not has_stray_brace("/{id}/{name}")
