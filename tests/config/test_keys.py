import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from mgpu.config.keys import KeysFileError, api_keys, read_file, secrets_of_environment
from mgpu.config.model import Config, ConsumerConfig, ServerConfig


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("# people\nalpha-key\n\n  beta-key  # Tuesdays only\n")
    path.chmod(0o640)
    return path


def test_a_file_holds_one_key_a_line_and_comments(file: Path) -> None:
    assert read_file(file) == ("alpha-key", "beta-key")


def test_keys_of_the_configuration_and_of_the_file_are_one_list(file: Path) -> None:
    inline = (SecretStr("gamma-key"), SecretStr("alpha-key"))

    config = Config(server=ServerConfig(api_keys=inline, api_keys_file=file))

    assert api_keys(config) == ("gamma-key", "alpha-key", "beta-key")


def test_without_keys_the_list_is_empty() -> None:
    assert api_keys(Config()) == ()


@pytest.mark.parametrize("mode", [0o644, 0o641, 0o602])
def test_a_file_that_others_may_touch_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)

    with pytest.raises(KeysFileError, match="open to every user of this machine"):
        read_file(file)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds no key"),
        (b"# nobody\n\n", "holds no key"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"two words\n", "is wrong on line 1: a key is printable ASCII without blanks"),
        (b"good\ncl\xc3\xa9\n", "is wrong on line 2"),
        (b"k" * 70_000, "is larger than 65536 bytes"),
    ],
)
def test_a_file_without_usable_keys_is_refused(file: Path, content: bytes, reason: str) -> None:
    file.write_bytes(content)

    with pytest.raises(KeysFileError, match=reason):
        read_file(file)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeysFileError, match="cannot be read: No such file or directory"):
        read_file(tmp_path / "absent")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(file: Path) -> None:
    file.chmod(0)

    with pytest.raises(KeysFileError, match="cannot be read: Permission denied"):
        read_file(file)


def test_the_environments_secrets_are_those_that_are_named_so_and_long_enough() -> None:
    consumer = ConsumerConfig(
        url="http://127.0.0.1:1",
        command=("tts",),
        environment={
            "HF_TOKEN": "hf_0123456789",
            "OPENAI_API_KEY": "sk-0123456789",
            "TOKENIZERS_PARALLELISM": "false",
            "MODEL_FOLDER": "/srv/models",
        },
    )
    assert secrets_of_environment(consumer) == ["hf_0123456789", "sk-0123456789"]
