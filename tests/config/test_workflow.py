"""A request is filled into a workflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mgpu.config.model import WorkflowConfig
from mgpu.config.workflow import Workflow, read
from mgpu.errors import BadRequest

GRAPH = {
    "3": {
        "class_type": "KSampler",
        "inputs": {"seed": 1, "cfg": 8.5, "tiled": False, "model": ["4", 0]},
    },
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat"}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "a.b": "c"}},
}
PLACES = {
    "prompt": ["6.inputs.text", "7.inputs.text"],
    "seed": "3.inputs.seed",
    "cfg": "3.inputs.cfg",
    "tiled": "3.inputs.tiled",
    "dotted": "7.inputs.a.b",
}


@pytest.fixture
def workflow(tmp_path: Path) -> Workflow:
    return made(tmp_path, {})


def made(folder: Path, defaults: dict[str, Any]) -> Workflow:
    file = folder / "cat.json"
    file.write_text(json.dumps(GRAPH))
    return read(
        WorkflowConfig.model_validate({"file": file, "places": PLACES, "defaults": defaults})
    )


def test_values_go_into_all_their_places(workflow: Workflow) -> None:
    graph = workflow.filled({"prompt": "a dog", "seed": 7, "tiled": True, "dotted": "d"})

    assert graph["6"]["inputs"]["text"] == "a dog"
    assert graph["7"]["inputs"] == {"text": "a dog", "a.b": "d"}
    assert graph["3"]["inputs"] == {"seed": 7, "cfg": 8.5, "tiled": True, "model": ["4", 0]}


def test_nothing_of_one_request_is_left_for_the_next(workflow: Workflow) -> None:
    workflow.filled({"prompt": "a dog"})
    assert workflow.filled({}) == GRAPH


def test_a_default_counts_where_the_request_says_nothing(tmp_path: Path) -> None:
    workflow = made(tmp_path, {"seed": 5, "prompt": "random"})

    assert workflow.filled({})["3"]["inputs"]["seed"] == 5
    assert workflow.filled({"seed": 6})["3"]["inputs"]["seed"] == 6
    assert workflow.filled({})["6"]["inputs"]["text"] == "random"


def test_a_random_default_is_another_number_each_time(tmp_path: Path) -> None:
    workflow = made(tmp_path, {"seed": "random"})
    seeds = {workflow.filled({})["3"]["inputs"]["seed"] for _ in range(10)}
    assert len(seeds) > 5
    assert all(isinstance(seed, int) and 0 <= seed < 1 << 32 for seed in seeds)


def test_a_whole_number_does_where_the_file_has_another_and_the_other_way_round(
    workflow: Workflow,
) -> None:
    inputs = workflow.filled({"cfg": 7, "seed": 7.5})["3"]["inputs"]
    assert (inputs["cfg"], inputs["seed"]) == (7, 7.5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": "7"}, "'seed' must be a number."),
        ({"seed": True}, "'seed' must be a number."),
        ({"seed": None}, "'seed' must be a number."),
        ({"cfg": float("inf")}, "'cfg' must be a finite number."),
        ({"prompt": 7}, "'prompt' must be text."),
        ({"prompt": ["4", 0]}, "'prompt' must be text."),
        ({"tiled": 1}, "'tiled' must be true or false."),
        ({"sead": 7}, "The workflow has no place for 'sead'; did you mean 'seed'?"),
        (
            {"x": 7},
            "The workflow has no place for 'x'; known: prompt, seed, cfg, tiled, dotted",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    workflow: Workflow, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadRequest) as raised:
        workflow.filled(fields)
    assert raised.value.detail == message
