from collections.abc import Callable

import pytest

from mgpu.config import future
from mgpu.config.model import Config
from mgpu.config.schema import keys_at

Problems = Callable[[str], list[str]]
Load = Callable[[str], Config]

TTS = """
    consumers:
      tts:
        url: http://127.0.0.1:8001
"""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("scheduler: {restore_when_idle: true}", "scheduler.restore_when_idle: is"),
    ],
)
def test_a_way_of_scheduling_that_is_not_there_yet_is_told_so(
    problems: Problems, text: str, problem: str
) -> None:
    assert problems(text) == [f"1: {problem} not supported by this version yet"]


def test_off_is_what_this_version_does_and_is_accepted(loaded: Load) -> None:
    config = loaded(f"""{TTS}
    scheduler: {{restore_when_idle: off}}
    """)

    assert config == loaded(TTS)


def test_the_table_names_no_key_that_the_model_has() -> None:
    def is_known(pattern: str) -> bool:
        *section, key = pattern.replace("*", "any").split(".")
        return key in keys_at(tuple(section))

    assert not any(map(is_known, future.KEYS))
