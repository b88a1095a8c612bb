from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgpu.api.paths import read_target
from mgpu.errors import BadRequest


@pytest.mark.parametrize(
    "target",
    [
        "/v1/../admin",
        "/v1/./tts",
        "/..",
        "/v1/..",
        "/v1/%2e%2e/admin",
        "/v1/%2E%2e/admin",
        "/v1/.%2e/admin",
        "/v1/%2e",
        "/v1/..;/admin",
        "/v1/..;x=y/admin",
        "/v1/%2e%2e;/admin",
    ],
)
def test_a_dot_segment_is_refused_in_any_spelling(target: str) -> None:
    with pytest.raises(BadRequest, match="dot segment"):
        read_target(target)


@pytest.mark.parametrize("target", ["//admin", "/v1//tts", "///", "/v1/tts//"])
def test_two_slashes_in_a_row_are_refused(target: str) -> None:
    with pytest.raises(BadRequest, match="two slashes"):
        read_target(target)


@pytest.mark.parametrize(
    "target",
    ["/v1%2ftts", "/v1/..%2fadmin", "/a%2Fb", "/a%5cb", "/a%5Cb", "/a\\b", "/..\\admin"],
)
def test_an_encoded_slash_and_a_backslash_are_refused(target: str) -> None:
    with pytest.raises(BadRequest, match="slash"):
        read_target(target)


@pytest.mark.parametrize("target", ["/a%00", "/a%0d%0aX: y", "/a%1f", "/a%7f", "/a%0A"])
def test_encoded_control_characters_are_refused(target: str) -> None:
    with pytest.raises(BadRequest):
        read_target(target)


@pytest.mark.parametrize("target", ["/a%", "/a%2", "/a%zz", "/%%30", "/a%g0"])
def test_half_an_escape_is_refused(target: str) -> None:
    with pytest.raises(BadRequest, match="escape"):
        read_target(target)


@pytest.mark.parametrize(
    "target",
    [
        "",
        "*",
        "tts",
        "http://localhost/tts",
        "http://evil.example/api/status",
        "localhost:80",
        "/a b",
        "/a\x00",
        "/a\r\n",
        "/a#fragment",
        "/a?b#fragment",
        "/a?b c",
        "/a?\x7f",
        "/ä",
        "/a?ä",
    ],
)
def test_what_is_no_path_in_ascii_is_refused(target: str) -> None:
    with pytest.raises(BadRequest, match="target"):
        read_target(target)


def test_a_path_is_kept_as_sent_and_compared_decoded() -> None:
    target = read_target("/v1/%74ts/a%20b;v=1/.well-known/x.tar.gz/%C3%A4?q=%2F..%2f&r=a//b?c")

    assert target.segments == ("v1", "tts", "a b;v=1", ".well-known", "x.tar.gz", "ä")
    assert target.raw_below(2) == "/a%20b;v=1/.well-known/x.tar.gz/%C3%A4"
    assert target.below(4) == "/x.tar.gz/ä"
    assert target.query == "q=%2F..%2f&r=a//b?c"


def test_a_slash_at_the_end_is_an_empty_last_segment() -> None:
    assert read_target("/").segments == ("",)
    assert read_target("/v1/tts/").raw_below(2) == "/"
    assert read_target("/v1/tts").raw_below(2) == ""


def test_what_is_encoded_twice_is_decoded_once_and_passed_as_sent() -> None:
    target = read_target("/v1/%252e%252e/x")

    assert target.segments == ("v1", "%2e%2e", "x")
    assert target.raw_below(1) == "/%252e%252e/x"


@pytest.mark.parametrize(
    ("path", "below"),
    [
        ("/consumers/tts/api/userdata/workflows%2Fx.json", "/api/userdata/workflows/x.json"),
        ("/%63onsumers/tts/a%2fb%2fc", "/a/b/c"),
        ("/consumers/tts/a%2F", "/a/"),
    ],
)
def test_below_a_consumers_name_an_encoded_slash_is_passed_as_sent(path: str, below: str) -> None:
    target = read_target(path)

    assert target.raw_below(2) == path[len(path) - len(target.raw_below(2)) :]
    assert "%2" in target.raw_below(2)
    assert target.below(2) == below


def test_on_a_consumers_own_port_the_whole_path_is_its_own() -> None:
    target = read_target("/userdata%2Fx", own_port=True)

    assert (target.raw_below(0), target.below(0)) == ("/userdata%2Fx", "/userdata/x")


@pytest.mark.parametrize(
    "path",
    [
        "/consumers%2Ftts/x",
        "/consumers/tts%2Fx",
        "/consumers/tts%2Fx/y",
        "/consumers%2F%2Ftts/x",
        "/consumer/tts/a%2Fb",
    ],
)
def test_what_decides_whose_path_it_is_holds_no_encoded_slash(path: str) -> None:
    with pytest.raises(BadRequest, match="encoded slash"):
        read_target(path)


@pytest.mark.parametrize("own_port", [False, True])
@pytest.mark.parametrize(
    "below",
    [
        "a%2F..%2Fb",
        "..%2Fb",
        "a%2F.",
        "a%2f%2e%2e%2fb",
        "a%2F..;x%2Fb",
        "a%2F%2Fb",
        "%2Fa",
        "a%2F/b",
        "a%5Cb",
        "a%2F%00",
        "a%2F%",
        "../b",
        "a//b",
    ],
)
def test_an_encoded_slash_hides_nothing(below: str, own_port: bool) -> None:
    with pytest.raises(BadRequest):
        read_target(f"/consumers/tts/{below}", own_port=own_port)


@given(st.text(alphabet="/.%2eEfF5cC;\\ab?\x00", max_size=24))
def test_nothing_that_is_accepted_can_climb_or_be_split_anew(target: str) -> None:
    try:
        read = read_target(target)
    except BadRequest:
        return
    for segment in read.segments:
        assert segment.split(";")[0] not in {".", ".."}
        assert not set(segment) & set("/\\\x00")
    assert "" not in read.segments[:-1]
    assert read.raw_below(0) == target.partition("?")[0]
