from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mgpu.errors import StorageFull
from mgpu.ports import Measurement
from mgpu.store.fence import SqliteFenceStore
from mgpu.store.measurements import MeasurementStore
from mgpu.store.writer import Writer


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    store = SqliteFenceStore(tmp_path / "jobs.db")
    yield store.path
    store.close()


def kept(path: Path, *rows: tuple[str, str, Measurement], fingerprint: str = "one") -> None:
    with closing(Writer(path)) as writer:
        store = MeasurementStore(writer, {name: fingerprint for name, _, _ in rows})
        for row in rows:
            store.keep(*row)


def loaded(path: Path, **fingerprints: str) -> dict[str, Measurement]:
    with closing(Writer(path)) as writer:
        return MeasurementStore(writer, fingerprints).load()


def test_what_was_kept_is_there_at_the_next_start(path: Path) -> None:
    kept(path, ("tts", "GPU-0", Measurement(2400, 300)), ("stt", "GPU-0", Measurement(3100, 0)))
    assert loaded(path, tts="one", stt="one") == {
        "tts": Measurement(2400, 300),
        "stt": Measurement(3100, 0),
    }


def test_the_last_figure_of_a_gpu_counts(path: Path) -> None:
    kept(path, ("tts", "GPU-0", Measurement(2400, 0)), ("tts", "GPU-0", Measurement(2000, 0)))
    assert loaded(path, tts="one") == {"tts": Measurement(2000, 0)}


def test_of_several_gpus_the_larger_one_counts(path: Path) -> None:
    kept(path, ("tts", "GPU-0", Measurement(2400, 0)), ("tts", "GPU-1", Measurement(2000, 9)))
    assert loaded(path, tts="one") == {"tts": Measurement(2400, 9)}


def test_of_another_consumer_by_that_name_nothing_is_known(path: Path) -> None:
    kept(path, ("tts", "GPU-0", Measurement(2400, 0)))
    assert loaded(path, tts="two") == {}
    kept(path, ("tts", "GPU-0", Measurement(900, 0)), fingerprint="two")
    assert loaded(path, tts="two") == {"tts": Measurement(900, 0)}
    assert loaded(path, tts="one") == {}


def test_what_cannot_be_written_is_given_up_and_said(tmp_path: Path) -> None:
    with capture_logs() as written:
        kept(tmp_path / "missing" / "jobs.db", ("tts", "GPU-0", Measurement(2400, 0)))
    assert [line["consumer"] for line in written] == ["tts"]


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageFull):
        loaded(tmp_path / "missing" / "jobs.db")
