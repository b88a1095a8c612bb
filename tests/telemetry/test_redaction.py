from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from mgpu.telemetry.redaction import REDACTED, Redactor

SECRET = 'k"e\\y é/1'


@pytest.mark.parametrize(
    "written",
    [SECRET, repr(SECRET), json.dumps(SECRET), quote(SECRET, safe=""), f"before{SECRET}after"],
)
def test_a_known_secret_is_found_in_every_form_it_is_written_in(written: str) -> None:
    clean = Redactor([SECRET]).text(written)
    assert REDACTED in clean
    assert written not in clean


def test_a_known_secret_is_found_at_any_depth_and_in_keys() -> None:
    value = {"a": [{"b": ("x", {"hunter2"})}], "hunter2": 1, "o": ValueError("hunter2")}
    clean = Redactor(["hunter2"]).value(value)
    assert "hunter2" not in repr(clean)
    assert repr(clean).count(REDACTED) == 3


def test_a_secret_that_begins_another_leaves_nothing_of_the_longer_one() -> None:
    assert Redactor(["abc", "abcdef"]).text("abcdef abc") == f"{REDACTED} {REDACTED}"


@pytest.mark.parametrize(
    "key", ["Authorization", "api_key", "X-Api-Key", "X-Auth-Token", "Set-Cookie", "password"]
)
def test_a_value_under_a_telling_key_is_redacted(key: str) -> None:
    redactor = Redactor()
    assert redactor.value({key: "abc"}) == {key: REDACTED}
    assert redactor.value([(key, "abc")]) == [[key, REDACTED]]
    assert redactor.value({key: ["abc", {"x": "abc"}]}) == {key: REDACTED}


def test_a_number_under_a_telling_key_stays_as_fencing_tokens_are_no_secrets() -> None:
    assert Redactor().value({"token": 17}) == {"token": 17}


def test_what_follows_bearer_is_redacted_without_being_known() -> None:
    assert Redactor().text("sent Bearer abc.def-1 to it") == f"sent Bearer {REDACTED} to it"


def test_everything_else_stays_as_it_is() -> None:
    value = {"consumer": "tts", "n": 1, "f": 0.5, "none": None, "yes": True, "l": ["a", "b"]}
    assert Redactor(["", "hunter2"]).value(value) == value
