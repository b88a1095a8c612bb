from itertools import islice

from mgpu.demo.markov import tokens


def test_same_arguments_give_the_same_words() -> None:
    assert list(tokens("ships", 1, 40)) == list(tokens("ships", 1, 40))
    assert list(tokens("ships", 1, 40)) != list(tokens("ships", 2, 40))


def test_every_word_but_the_first_carries_the_space_before_it() -> None:
    first, *rest = tokens("ships", 3, 30)
    assert not first.startswith(" ")
    assert all(word.startswith(" ") and len(word.split()) == 1 for word in rest)


def test_it_stops_at_the_limit_or_at_the_end_of_a_sentence_shortly_before() -> None:
    for seed in range(20):
        words = list(tokens("x", seed, 30))
        assert len(words) == 30 or (len(words) > 20 and words[-1].endswith("."))


def test_it_can_be_asked_for_a_single_word() -> None:
    assert len(list(tokens("x", 0, 1))) == 1


def test_it_begins_where_the_prompt_points() -> None:
    for seed in range(10):
        assert "ship" in "".join(islice(tokens("may no ship wait", seed, 20), 2))
