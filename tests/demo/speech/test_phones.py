import string

import pytest

from mgpu.demo.speech.letters import _RULES, _WORDS
from mgpu.demo.speech.phones import sound


def test_every_phone_that_a_rule_or_a_word_names_has_a_sound() -> None:
    named = {phone for _, phones in _RULES for phone in phones}
    named |= {phone for phones in _WORDS.values() for phone in phones}
    assert len(named) > 35
    for phone in named:
        assert sound(phone)


def test_every_letter_has_a_rule() -> None:
    for letter in string.ascii_lowercase:
        assert any(pattern.match(letter) for pattern, _ in _RULES), letter


def test_a_stressed_vowel_is_longer() -> None:
    (plain,), (stressed,) = sound("IY"), sound("IY", stressed=True)
    assert stressed.ms > plain.ms


def test_a_phone_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(KeyError):
        sound("XX")
