import io
from typing import Any

import pytest
from rich.console import Console

from mgpu.cli.view import duration, progress_line, render
from mgpu.core.effects import Evicted
from mgpu.core.model import ConsumerState

EVICTIONS = [Evicted(f"v{i}", f"t{i}", 1024 * i) for i in range(9)]


def consumer(**facts: Any) -> dict[str, Any]:
    usual = {
        "state": "absent",
        "healthy": True,
        "footprint_mib": 3072,
        "measured_mib": None,
        "running": 0,
        "queued": 0,
        "last_used_s": None,
        "pinned": False,
    }
    return usual | facts


def gpu(**facts: Any) -> dict[str, Any]:
    usual = {
        "index": 0,
        "uuid": "GPU-0",
        "name": "Card",
        "healthy": True,
        "total_mib": 24_576,
        "free_mib": 7_692,
        "reserved_mib": 0,
        "foreign_mib": 500,
        "lock": {"consumer": "image", "jobs": ["j1"]},
    }
    return usual | facts


def status(**facts: Any) -> dict[str, Any]:
    usual = {
        "gpus": [gpu()],
        "consumers": {
            "image": consumer(
                state="resident", footprint_mib=13_312, running=1, queued=4, last_used_s=1.24
            ),
            "tts": consumer(state="resident", last_used_s=95, pinned=True),
            "language": consumer(footprint_mib=9_216, measured_mib=10_240, healthy=False),
        },
        "queue": [
            {"job": f"j{i}", "consumer": "tts", "position": i, "waited_s": 9.0 / i, "eta_s": None}
            for i in range(1, 12)
        ],
        "paused": False,
        "evictions": 4,
        "loads": 7,
    }
    return usual | facts


def drawn(width: int, *args: Any, colours: bool = True, **how: Any) -> str:
    console = Console(
        width=width,
        record=True,
        file=io.StringIO(),
        force_terminal=colours,
        color_system="standard" if colours else None,
    )
    console.print(render(*args, **how))
    return console.export_text()


def line_with(picture: str, *words: str) -> str:
    (line,) = [line for line in picture.splitlines() if all(word in line for word in words)]
    return line


@pytest.mark.parametrize("width", [50, 60, 80, 88, 100, 160])
@pytest.mark.parametrize("colours", [True, False])
def test_every_line_fits_the_width(width: int, colours: bool) -> None:
    picture = drawn(width, status(), EVICTIONS, {"done": 3}, colours=colours)
    assert max(map(len, picture.splitlines())) <= width


def test_who_is_used_by_somebody_else_is_in_use() -> None:
    consumers = {"tts": consumer(state="resident", busy=True)}
    picture = drawn(60, status() | {"consumers": consumers})
    assert "● in use" in line_with(picture, "tts", "3.0 GiB")


@pytest.mark.parametrize("width", [60, 100])
def test_everything_is_told(width: int) -> None:
    picture = drawn(width, status(), EVICTIONS, {"done": 12, "failed": 1}, cushion_mib=256)
    assert "16.5 GiB of 24.0 GiB used, 7.5 GiB free" in picture
    assert "image computes" in picture
    assert "● resident" in line_with(picture, "image", "13.0 GiB", "│")
    assert "absent ill" in line_with(picture, "language", "│")
    assert "pinned" in line_with(picture, "tts", "resident")
    assert "queue (11)" in picture
    assert "evictions (4)" in picture
    assert "done 12" in picture
    assert "failed 1" in picture


def test_a_footprint_is_the_larger_of_configured_and_measured() -> None:
    assert "10.0 GiB" in line_with(drawn(100, status()), "language", "absent")


def test_the_bar_stacks_consumers_foreign_memory_and_what_is_free() -> None:
    bar = line_with(drawn(100, status(), colours=False, cushion_mib=1024), "image =")
    assert bar.index("image") < bar.index("tts") < bar.index("#") < bar.index("free")
    assert bar.index("free") < bar.index(":")
    assert bar.count("=") > 60 * 0.6


def test_memory_that_a_load_has_taken_already_is_its_own() -> None:
    loading = status()
    loading["consumers"]["language"]["state"] = "loading"
    loading["gpus"][0]["free_mib"] = 4_096
    bar = line_with(drawn(120, loading, colours=False), "image =")
    assert bar.count("+") > 5


def test_memory_that_nobody_accounts_for_is_shown_as_left_over() -> None:
    left = status(consumers={"tts": consumer()})
    assert "left over" in drawn(100, left, colours=False)


def test_a_consumer_on_two_gpus_holds_a_half_on_each() -> None:
    both = status(
        gpus=[gpu(index=i, free_mib=16_576, foreign_mib=0) for i in (0, 1)],
        consumers={"big": consumer(state="resident", footprint_mib=16_000, gpus=[0, 1])},
    )
    picture = drawn(100, both, colours=False)
    assert picture.count("7.8 GiB =") == 2
    assert "left over" not in picture


def test_a_gpu_that_does_not_answer_shows_why_and_no_figures() -> None:
    ill = status(gpus=[gpu(healthy=False, error="the driver is gone", free_mib=0)])
    picture = drawn(100, ill)
    assert "does not answer: the driver is gone" in picture
    assert "used" not in line_with(picture, "does not answer")
    assert "gpu0 ill" in progress_line(ill)


def test_a_long_queue_is_cut_with_the_number_of_the_rest() -> None:
    picture = drawn(100, status(), EVICTIONS)
    assert "5 tts waited 1.8 s" in picture
    assert "and 6 more" in picture
    assert "6 tts" not in picture


def test_the_latest_evictions_come_first_and_old_ones_drop_out() -> None:
    picture = drawn(100, status(), EVICTIONS)
    assert picture.index("v8 → t8 needs 8.0 GiB") < picture.index("v3 → t3")
    assert "v2 → t2" not in picture


def test_what_is_not_known_is_not_shown() -> None:
    picture = drawn(100, status())
    assert "evictions (" not in picture
    assert "jobs " not in picture
    assert "loads 7  evictions 4" in picture


def test_quiet_is_said_in_words() -> None:
    picture = drawn(100, status(queue=[]), [], {})
    assert "nobody waits" in picture
    assert "none yet" in picture


@pytest.mark.parametrize("state", ConsumerState)
def test_every_state_can_be_shown(state: ConsumerState) -> None:
    picture = drawn(100, status(consumers={"tts": consumer(state=state.value)}))
    assert state.value in line_with(picture, "tts", "3.0 GiB", "never")


def test_a_paused_or_draining_broker_says_so() -> None:
    told = "paused; mgpu resume ends it  draining"
    assert drawn(100, status(paused=True, draining=True)).rstrip().endswith(told)


def test_a_pause_is_shown_with_its_length_and_whether_it_was_kept_over_a_restart() -> None:
    paused = status(paused=True, paused_s=7260.0, pause_kept=False)
    assert drawn(100, paused).rstrip().endswith("paused for 2 h 1 min; mgpu resume ends it")
    kept = status(paused=True, paused_s=7260.0, pause_kept=True)
    told = "paused for 2 h 1 min, kept over a restart; mgpu resume ends it"
    assert drawn(100, kept).rstrip().endswith(told)


def test_text_from_outside_cannot_steer_the_terminal() -> None:
    evil = status(gpus=[gpu(name="\x1b]0;owned\x07 [red]card[/red]")])
    picture = drawn(100, evil)
    assert "\x1b]0" not in picture
    assert "[red]card" in picture


def test_one_plain_line_tells_the_progress() -> None:
    line = progress_line(status(), {"done": 12, "failed": 0})
    assert line == (
        "jobs: 12 done, 11 waiting; computing: image; resident: image+tts; "
        "gpu0 7.5 GiB free; 7 loads, 4 evictions"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (95, "1 min 35 s"), (7320, "2 h 2 min")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_keeps_the_broker_from_being_ready_stands_above_everything_else() -> None:
    told = drawn(100, status(gpus=[], problems=["the driver is not installed"]), colours=False)
    assert told.index("the driver is not installed") < told.index("consumer")


def test_foreign_programs_are_named_with_what_they_hold() -> None:
    game = {"pid": 70, "mib": 5120, "name": "game"}
    hidden = {"pid": 80, "mib": None, "name": ""}
    picture = drawn(100, status(gpus=[gpu(foreign=[game, hidden])]))
    assert "game (70) 5.0 GiB, hidden (80) ?" in line_with(picture, "foreign:")
    many = [{**game, "pid": pid} for pid in range(8)]
    assert "and 2 more" in drawn(200, status(gpus=[gpu(foreign=many)]))


def test_a_footprint_that_nobody_knows_yet_is_no_number() -> None:
    unknown = status(consumers={"tts": consumer(footprint_mib=0, footprint_source="unknown")})
    assert line_with(drawn(100, unknown), "tts", "unknown")
