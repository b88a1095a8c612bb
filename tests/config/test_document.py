from textwrap import dedent

import pytest

from mgpu.config.document import MAX_DEPTH, Document, UnreadableError, parse


def _messages(document: Document) -> list[str]:
    return [f"{line}: {'.'.join(map(str, path))}: {text}" for path, line, text in document.problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("off", "off"),
        ("null", None),
        ("~", None),
        ("", None),
        ("12", 12),
        ("-7", -7),
        ("0x1f", 31),
        ("0o17", 15),
        ("0", 0),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("127.0.0.1:7070", "127.0.0.1:7070"),
        ("2026-01-01", "2026-01-01"),
        ("'12'", "12"),
        ("!!str 12", "12"),
        ("!!int '12'", 12),
    ],
)
def test_scalars_are_read_by_the_core_schema_of_yaml_1_2(text: str, value: object) -> None:
    document = parse(f"key: {text}")

    assert document.data == {"key": value}
    assert type(document.data["key"]) is type(value)
    assert not document.problems


def test_a_number_with_a_leading_zero_is_refused() -> None:
    assert _messages(parse("mode: 0755")) == [
        "1: mode: 0755 may mean octal: drop the leading zero, or quote it"
    ]


@pytest.mark.parametrize("text", ["yes", "On", "12:30", "1_000"])
def test_text_that_yaml_1_1_takes_for_something_else_is_marked(text: str) -> None:
    assert parse(f"key: {text}").doubtful == {("key",): text}
    assert parse(f"key: '{text}'").doubtful == {}


def test_every_value_knows_its_line() -> None:
    document = parse(
        dedent("""\
        server:
          listen: here
        gpu:
          devices:
            - 0
            - 1
        """)
    )

    assert document.lines == {
        ("server",): 1,
        ("server", "listen"): 2,
        ("gpu",): 3,
        ("gpu", "devices"): 4,
        ("gpu", "devices", 0): 5,
        ("gpu", "devices", 1): 6,
    }


def test_a_key_given_twice_is_a_problem_and_the_first_one_stays() -> None:
    document = parse("a: 1\nb: 2\na: 3\n")

    assert _messages(document) == ["3: a: given twice, first on line 1"]
    assert document.data == {"a": 1, "b": 2}


def test_merge_keys_are_filled_in_beneath_what_is_given() -> None:
    document = parse(
        dedent("""\
        a: &a {x: 1, y: 1}
        b: {<<: *a, y: 2}
        c: {<<: [{z: 3}, *a], x: 4}
        """)
    )

    assert document.data["b"] == {"x": 1, "y": 2}
    assert document.data["c"] == {"x": 4, "y": 1, "z": 3}
    assert not document.problems


def test_a_merge_of_what_is_no_mapping_is_a_problem() -> None:
    assert _messages(parse("a: {<<: 5}")) == ["1: a: << takes a mapping, or a list of mappings"]


@pytest.mark.parametrize("text", ["a: !!python/name:os.system ''", "a: !x 1", "a: !!set {b}"])
def test_tags_construct_nothing(text: str) -> None:
    (message,) = _messages(parse(text))

    assert message.startswith("1: a: does not fit its tag, or the tag is not known here")


@pytest.mark.parametrize("text", ["a: !!int x", "a: !!bool 5", "a: !!float one"])
def test_a_value_that_does_not_fit_its_tag_is_a_problem(text: str) -> None:
    assert len(parse(text).problems) == 1


@pytest.mark.parametrize("value", [".inf", "-.INF", ".nan", "1e999"])
def test_numbers_are_finite(value: str) -> None:
    assert _messages(parse(f"a: {value}")) == ["1: a: must be a finite number"]


@pytest.mark.parametrize("text", [r'a: "\0"', r'a: "\uD800"'])
def test_what_cannot_be_written_as_text_is_a_problem(text: str) -> None:
    assert _messages(parse(text)) == ["1: a: holds a character that is not text"]


def test_keys_are_plain_text() -> None:
    assert _messages(parse("a:\n  [b]: 1\n")) == ["2: a: a key must be plain text"]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("[1]", 1, "must be a mapping of sections"),
        ("just text", 1, "must be a mapping of sections"),
        ("a: 1\n---\nb: 2\n", 2, "column 1: expected a single document"),
        ("a: 1\nb: *nobody\n", 2, "column 4: found undefined alias"),
        ("a: 1\n\tb: 2\n", 2, "column 1: "),
        ('a: "\\UFFFFFFFF"\n', 1, "column "),
        ("a: 1\nb: \x07\n", 2, "holds a control character (#0007)"),
    ],
)
def test_what_cannot_be_gone_on_with_has_a_line(text: str, line: int, message: str) -> None:
    with pytest.raises(UnreadableError) as raised:
        parse(text)

    assert raised.value.message.startswith(message)
    assert raised.value.line == line


def test_an_alias_inside_what_it_refers_to_is_refused() -> None:
    for text in ("a: &a [*a]", "&a {b: *a}", "a: &a {<<: *a}"):
        with pytest.raises(UnreadableError, match="an alias stands inside what it refers to"):
            parse(text)


def test_a_few_lines_of_aliases_cannot_unfold_to_billions_of_values() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]

    with pytest.raises(UnreadableError, match="unfolds to more than 100000 values"):
        parse("\n".join(lines))


@pytest.mark.parametrize("piece", ["[", "{a: ", "? "])
def test_nesting_is_bounded(piece: str) -> None:
    with pytest.raises(UnreadableError, match=f"nested deeper than {MAX_DEPTH} levels"):
        parse("a: " + piece * 50_000 if piece != "? " else piece * 50_000)
