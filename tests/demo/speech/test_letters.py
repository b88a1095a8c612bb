import pytest

from mgpu.demo.speech.letters import spoken_words, to_phones


@pytest.mark.parametrize(
    ("word", "phones"),
    [
        ("ship", "SH IH P"),
        ("late", "L EY T"),
        ("making", "M EY K IH NG"),
        ("night", "N AY T"),
        ("nation", "N EY SH AX N"),
        ("queen", "K W IY N"),
        ("watched", "W AA CH T"),
        ("waited", "W EY T IH D"),
        ("voices", "V OY S IH Z"),
        ("happy", "HH AE P IY"),
        ("try", "T R AY"),
        ("phone", "F OW N"),
        ("knee", "N IY"),
        ("bright", "B R AY T"),
        ("picture", "P IH K CH ER"),
        ("one", "W AH N"),
        ("you", "Y UW"),
    ],
)
def test_spelling_becomes_phones(word: str, phones: str) -> None:
    assert " ".join(to_phones(word)) == phones


def test_marks_stay_with_the_word_before_them() -> None:
    assert spoken_words("Well, is it? Yes.") == [
        ("well", ","),
        ("is", ""),
        ("it", "?"),
        ("yes", "."),
    ]


def test_digits_and_signs_are_said() -> None:
    assert [word for word, _ in spoken_words("24 GiB & 5%")] == (
        ["two", "four", "gib", "and", "five", "percent"]
    )


def test_what_cannot_be_said_is_left_out() -> None:
    assert spoken_words("\u6f22\u5b57 *** \x00") == []
    assert [word for word, _ in spoken_words("don\u2019t")] == ["dont"]
