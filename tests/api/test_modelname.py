from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import aiohttp
import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from mgpu.api.modelname import MAX_NAME_BYTES, ModelFinder
from mgpu.errors import BadRequest, UnsupportedMediaType

JSON = "application/json"
FORM = "multipart/form-data; boundary=xyz"


def finder(content_type: str = JSON, **headers: str) -> ModelFinder:
    return ModelFinder(
        make_mocked_request("POST", "/", headers={"Content-Type": content_type, **headers})
    )


async def model_of(body: bytes, content_type: str = JSON, cuts: Sequence[int] = ()) -> str:
    """The model that is found when the body comes in pieces."""
    found = finder(content_type)
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    for start, end in itertools.pairwise(edges):
        if start < end:
            found.feed(body[start:end])
    found.feed(b"")
    return await found.name()


def form(*parts: tuple[str, bytes]) -> bytes:
    return (
        b"".join(
            b"--xyz\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (head.encode(), value)
            for head, value in parts
        )
        + b"--xyz--\r\n"
    )


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model": "tiny"}', "tiny"),
        (b' \r\n{"model":"tiny"} \n', "tiny"),
        (b'{"a": 1, "b": null, "model": "tiny", "c": [true]}', "tiny"),
        (
            b'{"messages": [{"model": "inner", "content": "\\"model\\": \\"no\\""}], "model": "x"}',
            "x",
        ),
        (b'{"input": ["model", "no"], "x": "model", "model": "x"}', "x"),
        (b'{"model": "a/b:c-1.5", "in": {"model": {"model": []}}}', "a/b:c-1.5"),
        ('{"model": "größe"}'.encode(), "größe"),
        (b'{"mod\\u0065l": "\\u00e4\\"\\\\"}', 'ä"\\'),
        (b'{"' + b"k" * 5000 + b'": 1, "model": "x"}', "x"),
        (b'{"deep": ' + b"[" * 900 + b"]" * 900 + b', "model": "x"}', "x"),
        (b'{"flat": ' + b"[]," * 5000 + b'[], "model": "x"}', "x"),
    ],
)
async def test_the_model_of_json_is_the_member_of_the_outermost_object(
    body: bytes, model: str
) -> None:
    assert await model_of(body) == model
    assert await model_of(body, "text/plain", range(1, min(len(body), 400))) == model


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b'"model"', "not a JSON object"),
        (b'{"model": "x"', "not a JSON object"),
        (b'{"model": "x"}{}', "not a JSON object"),
        (b'\xef\xbb\xbf{"model": "x"}', "not a JSON object"),
        (b'{"x": ' + b"[" * 1001 + b"]" * 1001 + b', "model": "x"}', "nested more than"),
        (b"{}", "names no model"),
        (b'{"messages": [{"model": "x"}]}', "names no model"),
        (b'{"Model": "x"}', "names no model"),
        (b'{"model": 5}', "must be a text"),
        (b'{"model": null, "x": 1}', "must be a text"),
        (b'{"model": ["x"]}', "must be a text"),
        (b'{"model": {"model": "x"}}', "must be a text"),
        (b'{"model": ""}', "is empty"),
        (b'{"model": "x", "model": "y"}', "more than once"),
        (b'{"model": "x", "mode\\u006c": "x"}', "more than once"),
        (b'{"model": "\xff"}', "not UTF-8"),
        (b'{"model": "\\ud800"}', "not UTF-8"),
        (b'{"model": "\\q"}', "not JSON"),
        (b'{"model": "' + b"x" * (MAX_NAME_BYTES + 1) + b'"}', "has more than"),
    ],
)
async def test_json_that_names_no_model_or_more_than_one_is_refused(
    body: bytes, reason: str
) -> None:
    with pytest.raises(BadRequest, match=reason):
        await model_of(body)


values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text('model"\\{}[],:\n ä'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('model"\\{}'), inner),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text('model"\\{}'), values),
    st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable()),
    st.lists(st.integers(0, 200)),
    st.booleans(),
    st.booleans(),
)
async def test_it_reads_what_a_json_library_reads_wherever_the_body_is_cut(
    members: dict[str, object], model: str, cuts: list[int], last: bool, escaped: bool
) -> None:
    members.pop("model", None)
    document = {**members, "model": model} if last else {"model": model, **members}
    body = json.dumps(document, ensure_ascii=escaped).encode()

    assert await model_of(body, cuts=cuts) == json.loads(body)["model"]


@pytest.mark.parametrize("where", [0, 1, 2])
async def test_the_model_of_a_form_may_stand_anywhere(where: int) -> None:
    parts = [('name="file"; filename="model"', b"\r\n--xy\x00" * 3000), ('name="language"', b"de")]
    parts.insert(where, ('name="model"', b"whisper-1"))
    body = form(*parts)

    assert await model_of(body, FORM) == "whisper-1"
    assert await model_of(body, FORM, range(1, len(body), 7)) == "whisper-1"


async def test_what_the_official_client_and_others_send_is_understood() -> None:
    written = aiohttp.FormData(quote_fields=False)
    written.add_field("file", b"x" * 10, filename="ä model.wav", content_type="audio/wav")
    written.add_field("model", "größe", content_type="text/plain; charset=utf-8")
    payload = written()
    body = bytes(await payload.as_bytes())

    assert await model_of(body, payload.content_type) == "größe"
    assert await model_of(body, payload.content_type.replace("boundary=", "Boundary=")) == "größe"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "ends before"),
        (form(("name=file", b"x")), "names no model"),
        (form(('name="model"; filename="m"', b"x")), "names no model"),
        (form(('name="model"', b"x"))[:-6], "ends before"),
        (form(('name="model"', b"x"), ('name="model"', b"y")), "more than once"),
        (form(('name="model"', b"")), "is empty"),
        (form(('name="model"', b"x" * (MAX_NAME_BYTES + 1))), "has more than"),
        (b"no form", "not a form"),
        (b'{"model": "x"}', "not a form"),
    ],
)
async def test_a_form_that_names_no_model_or_more_than_one_is_refused(
    body: bytes, reason: str
) -> None:
    with pytest.raises(BadRequest, match=reason):
        await model_of(body, FORM)


@pytest.mark.parametrize("content_type", ["multipart/form-data", f"{FORM}{'x' * 300}"])
async def test_a_form_without_a_boundary_is_refused(content_type: str) -> None:
    with pytest.raises(BadRequest, match="boundary"):
        finder(content_type)


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain"])
async def test_what_is_no_json_and_does_not_claim_to_be_is_of_the_wrong_type(
    content_type: str,
) -> None:
    with pytest.raises(UnsupportedMediaType, match="JSON object or multipart"):
        await model_of(b"model=tiny", content_type)
    with pytest.raises(BadRequest, match="not a JSON object"):
        await model_of(b'{"model": "tiny"', content_type)
    assert await model_of(b'{"model": "tiny"}', content_type) == "tiny"


async def test_a_compressed_body_is_refused() -> None:
    with pytest.raises(UnsupportedMediaType, match="compressed"):
        finder(**{"Content-Encoding": "gzip"})
    finder(**{"Content-Encoding": "identity"})


async def test_the_model_is_known_as_soon_as_it_has_come() -> None:
    found = finder()

    found.feed(b'{"model": "x')
    assert not found.satisfied
    found.feed(b'", "messages": [')
    assert found.satisfied
    with pytest.raises(BadRequest, match="more than once"):
        found.feed(b'], "model": "y"}')
