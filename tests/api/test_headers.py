from __future__ import annotations

import pytest
from multidict import CIMultiDict

from mgpu.api.headers import towards_client, towards_consumer

HOP_BY_HOP = [
    "Connection",
    "Keep-Alive",
    "Proxy-Authenticate",
    "Proxy-Authorization",
    "Proxy-Connection",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
]


@pytest.mark.parametrize("name", HOP_BY_HOP)
def test_fields_about_one_connection_stay_with_it(name: str) -> None:
    fields = CIMultiDict([(name.lower(), "x"), ("X-Kept", "1")])

    assert list(towards_consumer(fields, keep_authorization=True)) == ["X-Kept"]
    assert list(towards_client(fields)) == ["X-Kept"]


def test_fields_that_connection_names_stay_with_it_too() -> None:
    fields = CIMultiDict(
        [
            ("Connection", "close, X-Secret"),
            ("Connection", " x-other "),
            ("X-Secret", "1"),
            ("X-Other", "2"),
            ("X-Kept", "3"),
        ]
    )

    assert list(towards_consumer(fields, keep_authorization=True)) == ["X-Kept"]
    assert list(towards_client(fields)) == ["X-Kept"]


@pytest.mark.parametrize(
    "name",
    [
        "Host",
        "Content-Length",
        "Expect",
        "Origin",
        "Sec-Fetch-Site",
        "Sec-Fetch-Mode",
        "Sec-Fetch-Dest",
        "Sec-Fetch-User",
        "X-MGPU-Priority",
        "X-MGPU-Max-Wait",
        "X-MGPU-Answer",
    ],
)
def test_what_is_the_brokers_or_the_pages_business_does_not_reach_a_consumer(name: str) -> None:
    assert not towards_consumer(CIMultiDict([(name, "x")]), keep_authorization=True)


def test_the_brokers_key_does_not_reach_a_consumer() -> None:
    fields = CIMultiDict([("Authorization", "Bearer k"), ("Cookie", "a=b")])

    assert list(towards_consumer(fields, keep_authorization=False)) == ["Cookie"]
    assert list(towards_consumer(fields, keep_authorization=True)) == ["Authorization", "Cookie"]


def test_what_is_to_be_dropped_does_not_reach_a_consumer() -> None:
    fields = CIMultiDict([("X-Conversation-ID", "7"), ("X-Kept", "1")])
    drop = frozenset({"x-conversation-id"})

    assert list(towards_consumer(fields, keep_authorization=True, drop=drop)) == ["X-Kept"]


def test_duplicates_keep_their_order() -> None:
    pairs = [("Set-Cookie", "a=1"), ("X", "1"), ("Set-Cookie", "b=2"), ("x", "2")]

    assert list(towards_client(CIMultiDict(pairs)).items()) == pairs
    assert list(towards_consumer(CIMultiDict(pairs), keep_authorization=True).items()) == pairs


def test_a_consumer_cannot_speak_for_the_broker() -> None:
    fields = CIMultiDict([("X-MGPU-Job", "1"), ("X-MGPU-Consumer", "other")])

    assert not towards_client(fields)


def test_a_length_beside_an_encoding_is_not_believed() -> None:
    fields = CIMultiDict([("Content-Length", "3"), ("Transfer-Encoding", "chunked")])

    assert not towards_client(fields)
