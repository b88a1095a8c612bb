import pytest

from mgpu.config.fingerprint import fingerprints
from mgpu.config.model import Config

BASE = {"url": "http://127.0.0.1:8001", "load": {"path": "/load"}}


def fingerprint(**changes: object) -> str:
    return fingerprints(Config.model_validate({"consumers": {"tts": BASE | changes}}))["tts"]


@pytest.mark.parametrize(
    "changes",
    [
        {"url": "http://127.0.0.1:8002"},
        {"load": {"path": "/load", "body": {"model": "large"}}},
        {"systemd_unit": "tts.service"},
        {"gpus": [1]},
    ],
)
def test_another_consumer_has_another_one(changes: dict[str, object]) -> None:
    assert fingerprint(**changes) != fingerprint()


@pytest.mark.parametrize(
    "changes", [{"priority": 5}, {"load": {"path": "/load", "headers": {"Authorization": "x"}}}]
)
def test_the_same_one_keeps_it(changes: dict[str, object]) -> None:
    assert fingerprint(**changes) == fingerprint()
