"""A figure is written into broker.yaml, and not one other character changes."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from mgpu.config.load import load
from mgpu.config.problems import InvalidConfig
from mgpu.config.rewrite import set_figures
from mgpu.errors import ConfigError

FILE = """\
# My machine.
server: {listen: "127.0.0.1:7070"}   # local only

consumers:
    tts:
        # the voice
        url: 'http://127.0.0.1:8001'   # in the cellar
        footprint_mib:   0  # measured?

        unload: {path: /unload}
    stt: {url: http://127.0.0.1:8002, unload: {path: /unload}}  # whisper
    comfyui:
        url: http://127.0.0.1:8188
        not_activity:
        - GET /queue
        - "GET /prompt"
routes:
    /v1/tts: {consumer: tts, path: /tts}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "broker.yaml"
    path.write_text(FILE)
    return path


def test_a_figure_that_is_there_is_replaced_and_its_comment_stays(file: Path) -> None:
    set_figures(file, "tts", {"footprint_mib": 2400})

    assert file.read_text() == FILE.replace(
        "footprint_mib:   0  # measured?", "footprint_mib:   2400  # measured?"
    )


def test_a_figure_that_is_not_there_comes_after_the_address(file: Path) -> None:
    set_figures(file, "comfyui", {"footprint_mib": 9000, "residual_mib": 400})

    assert file.read_text() == FILE.replace(
        "        url: http://127.0.0.1:8188\n",
        "        url: http://127.0.0.1:8188\n"
        "        residual_mib: 400\n"
        "        footprint_mib: 9000\n",
    )


def test_a_comment_behind_the_address_stays_there(file: Path) -> None:
    set_figures(file, "tts", {"residual_mib": 300})

    assert "'http://127.0.0.1:8001'   # in the cellar\n        residual_mib: 300\n" in (
        file.read_text()
    )


def test_a_consumer_on_one_line_stays_on_one(file: Path) -> None:
    set_figures(file, "stt", {"footprint_mib": 3000})

    assert (
        "    stt: {url: http://127.0.0.1:8002, footprint_mib: 3000, unload: {path: /unload}}"
        "  # whisper\n"
    ) in file.read_text()


@pytest.mark.parametrize("name", ["tts", "stt", "comfyui"])
def test_what_was_written_is_read(file: Path, name: str) -> None:
    set_figures(file, name, {"footprint_mib": 2400, "residual_mib": 300})

    consumer = load(file).consumers[name]
    assert (consumer.footprint_mib, consumer.residual_mib) == (2400, 300)


def test_a_file_that_ends_without_a_line_end_and_has_windows_ones(tmp_path: Path) -> None:
    path = tmp_path / "broker.yaml"
    path.write_bytes(b"consumers:\r\n  a:\r\n    url: http://127.0.0.1:1")
    set_figures(path, "a", {"footprint_mib": 5})

    assert load(path).consumers["a"].footprint_mib == 5


def test_text_beyond_ascii_moves_nothing(file: Path) -> None:
    file.write_text("# größer 🚀\n" + FILE)
    set_figures(file, "tts", {"footprint_mib": 2400})

    assert file.read_text().startswith("# größer 🚀\n")
    assert load(file).consumers["tts"].footprint_mib == 2400


def test_rights_and_links_stay(file: Path, tmp_path: Path) -> None:
    file.chmod(0o640)
    link = tmp_path / "link.yaml"
    link.symlink_to(file)
    set_figures(link, "tts", {"footprint_mib": 2400})

    assert link.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert load(file).consumers["tts"].footprint_mib == 2400
    assert sorted(tmp_path.iterdir()) == [file, link]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("consumers: {}\n", "there is no section consumers.tts"),
        ("[1, 2]\n", "there is no section consumers.tts"),
        ("consumers: {a: &x {url: http://127.0.0.1:1}, tts: *x}\n", "no section consumers.tts"),
        ("consumers: {tts: {priority: 1}}\n", "has no url: write footprint_mib: 7 there"),
        (
            "consumers:\n  a: {url: http://127.0.0.1:1, footprint_mib: &f 4}\n"  # noqa: ISC004
            "  tts: {url: http://127.0.0.1:2, footprint_mib: *f}\n",
            "footprint_mib is an alias: write 7 there",
        ),
        ("consumers: {tts: [\n", "broker.yaml"),
    ],
)
def test_what_cannot_be_written_is_said_and_left_alone(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "broker.yaml"
    path.write_text(text)

    with pytest.raises(ConfigError, match=message):
        set_figures(path, "tts", {"footprint_mib": 7})

    assert path.read_text() == text


def test_a_file_that_would_not_be_valid_is_not_put_into_place(file: Path) -> None:
    file.write_text(FILE.replace("http://127.0.0.1:8188", "nonsense"))
    before = file.read_text()

    with pytest.raises(InvalidConfig):
        set_figures(file, "tts", {"footprint_mib": 7})

    assert file.read_text() == before
    assert sorted(file.parent.iterdir()) == [file]
