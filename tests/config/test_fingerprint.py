import pytest

from mgpu.config.fingerprint import fingerprints, fingerprints_of_models, service
from mgpu.config.model import Config, ConsumerConfig

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


def of_models(**changes: object) -> dict[str, str]:
    config = Config.model_validate({"consumers": {"tts": BASE | {"models": {}} | changes}})
    return fingerprints_of_models(config)


@pytest.mark.parametrize(
    "changes",
    [
        {"url": "http://127.0.0.1:8002"},
        {"models": {"path": "/models"}},
        {"load": {"path": "/load", "body": {"model": "large"}}},
        {"command": "serve --model large"},
    ],
)
def test_what_another_one_told_of_its_models_is_another_s(changes: dict[str, object]) -> None:
    assert of_models(**changes) != of_models()


def test_where_it_lives_is_all_the_same_to_its_models() -> None:
    assert of_models(gpus=[1], priority=5) == of_models()


def test_who_cannot_be_asked_for_models_has_told_none() -> None:
    assert of_models(models=None) == {}


@pytest.mark.parametrize(
    "changes", [{"priority": 5}, {"load": {"path": "/load", "headers": {"Authorization": "x"}}}]
)
def test_the_same_one_keeps_it(changes: dict[str, object]) -> None:
    assert fingerprint(**changes) == fingerprint()


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"load": {"path": "/load", "body": {"model": "large"}}}, True),
        ({"gpus": [1]}, True),
        ({"url": "http://127.0.0.1:8002"}, False),
        ({"systemd_unit": "tts.service"}, False),
        ({"container": "tts"}, False),
    ],
)
def test_a_service_is_the_same_whatever_it_is_to_load(
    changes: dict[str, object], same: bool
) -> None:
    before, after = (ConsumerConfig.model_validate(BASE | keys) for keys in ({}, changes))
    assert (service(after) == service(before)) is same
