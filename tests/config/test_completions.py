"""What is wrong in ``completion`` and ``workflows`` is told with its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mgpu.config.model import Config
from mgpu.config.workflow import MAX_FILE_BYTES

Problems = Callable[[str], list[str]]
Load = Callable[[str], Config]

COMPLETION = {
    "requests": ["POST /prompt"],
    "id": "id",
    "poll": {"path": "/jobs/{id}", "until": "done"},
}
GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 1, "cfg": 8.5, "model": ["4", 0]}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["4", 1]}},
}
PLACES = {"prompt": "6.inputs.text", "seed": "3.inputs.seed"}


def document(
    completion: dict[str, Any] | None = None,
    workflow: dict[str, Any] | None = None,
    route: dict[str, Any] | None = None,
) -> str:
    comfyui: dict[str, Any] = {"url": "http://127.0.0.1:8188"}
    if completion is not None:
        comfyui["completion"] = completion
    if workflow is not None:
        comfyui["workflows"] = {"cat": workflow}
    routes = {} if route is None else {"/v1/image": route}
    return yaml.safe_dump(
        {"consumers": {"comfyui": comfyui}, "routes": routes}, default_flow_style=True, width=9999
    )


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    (tmp_path / "workflows").mkdir()
    path = tmp_path / "workflows" / "cat.json"
    path.write_text(json.dumps(GRAPH))
    return path


WORKFLOW = {"file": "workflows/cat.json", "places": PLACES, "defaults": {"seed": "random"}}
ROUTE = {"consumer": "comfyui", "path": "/prompt", "workflow": "cat"}


def test_a_workflow_is_found_beside_the_file(loaded: Load, graph: Path) -> None:
    config = loaded(document(COMPLETION, WORKFLOW, ROUTE))

    assert config.consumers["comfyui"].workflows["cat"].file == graph
    assert config.routes["/v1/image"].workflow == "cat"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"requests": []}, "requests: must name at least one request"),
        (
            {"requests": ["prompt"]},
            "requests[0]: must be METHOD /PATH, such as GET /queue",
        ),
        ({"poll": {"path": "/jobs", "until": "a"}}, "poll.path: must hold {id}"),
        (
            {"poll": {"path": "/jobs/{id}/{name}", "until": "a"}},
            "poll.path: knows no {name}, only {id}",
        ),
        ({"poll": {"path": "/jobs/{id}", "until": "a["}}, "poll.until: not a JMESPath expression"),
        ({"listed": {"path": "/q/{id}", "ids": "a"}}, "listed.path: knows no {id}, only no name"),
        ({"results": {"path": "/r/{name}"}}, "results.path: knows no {name}, only {id}"),
        (
            {"results": {"path": "/r/{", "files": "a"}},
            "results.path: holds a brace that is not part of a {name}",
        ),
        (
            {"cancel": [{"path": "/c/{id}}"}]},
            "cancel[0].path: holds a brace that is not part of a {name}",
        ),
        (
            {"cancel": [{"path": "/c", "body": {"x": ["{ids}"]}}]},
            "cancel[0].body: knows no {ids}, only {id}",
        ),
    ],
)
def test_what_a_completion_names_must_be_there(
    problems: Problems, change: dict[str, Any], problem: str
) -> None:
    assert any(
        f"consumers.comfyui.completion.{problem}" in found
        for found in problems(document({**COMPLETION, **change}))
    )


def test_an_unknown_key_is_named_with_its_nearest(problems: Problems) -> None:
    (problem,) = problems(document({**COMPLETION, "result": {"path": "/"}}))
    assert problem.endswith("completion.result: unknown key; did you mean results?")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"file": "no.json"}, "file: {folder}/no.json cannot be read: No such file or directory"),
        (
            {"places": {"prompt": "66.inputs.text"}},
            "places.prompt: {folder}/workflows/cat.json has no node 66; did you mean 6?",
        ),
        (
            {"places": {"prompt": "6.inputs.txt"}},
            "places.prompt: node 6 (CLIPTextEncode) has no input 'txt'; did you mean text?",
        ),
        (
            {"places": {"prompt": "6.text"}},
            "places.prompt: must be NODE.inputs.INPUT, not '6.text'",
        ),
        (
            {"places": {"prompt": "6.inputs.clip"}},
            "places.prompt: input 'clip' of node 6 (CLIPTextEncode) is connected to another node",
        ),
        ({"places": {"prompt": []}}, "places.prompt: must name at least one place"),
        (
            {"places": {"prompt": ["6.inputs.text", "9.inputs.text"]}},
            "places.prompt[1]: {folder}/workflows/cat.json has no node 9; known nodes: 3, 6",
        ),
        (
            {"places": {"prompt": ["6.inputs.text", "3.inputs.seed"]}},
            "places.prompt: names places for different kinds of values",
        ),
        ({"defaults": {"sed": 1}}, "defaults.sed: no place is called 'sed'; did you mean seed?"),
        ({"defaults": {"seed": "1"}}, "defaults.seed: must be a number"),
        ({"defaults": {"prompt": 1}}, "defaults.prompt: must be text"),
    ],
)
def test_what_a_workflow_names_must_be_in_its_file(
    problems: Problems, graph: Path, tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    workflow = {**WORKFLOW, "defaults": {}, **change}

    (found,) = problems(document(COMPLETION, workflow))

    assert found == f"1: consumers.comfyui.workflows.cat.{problem.format(folder=tmp_path)}"


def test_every_place_that_is_wrong_is_named(problems: Problems, graph: Path) -> None:
    workflow = {"file": "workflows/cat.json", "places": {"a": "1.inputs.x", "b": "2.inputs.x"}}
    assert len(problems(document(COMPLETION, workflow))) == 2


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "is not JSON: line 1, column 2: "),
        ("[]", "is not a workflow: it must be a JSON object of nodes"),
        ("{}", "is not a workflow: it must be a JSON object of nodes"),
        (
            '{"nodes": [], "links": []}',
            "is a workflow as the editor saves it: export it in API format",
        ),
        ('{"1": []}', "is not a workflow in API format: node 1 has no inputs"),
        ('{"1": {"inputs": {"a": NaN}}}', "holds NaN"),
        ("[" * 100_000, "is not JSON"),
        ("\xff", "is not JSON"),
        (" " * (MAX_FILE_BYTES + 1), f"is larger than {MAX_FILE_BYTES} bytes"),
    ],
    ids=["broken", "list", "empty", "editor", "no inputs", "NaN", "deep", "not UTF-8", "large"],
)
def test_a_file_that_is_no_workflow_is_told(
    problems: Problems, graph: Path, content: str, problem: str
) -> None:
    graph.write_bytes(content.encode("latin-1"))

    (found,) = problems(document(COMPLETION, WORKFLOW))

    assert f"workflows.cat.file: {graph} {problem}" in found


def test_a_workflow_needs_a_completion(problems: Problems, graph: Path) -> None:
    assert problems(document(None, WORKFLOW)) == [
        "1: consumers.comfyui.workflows.cat: needs completion, which tells when its work is over"
    ]


def test_a_route_names_a_workflow_that_is_there(problems: Problems, graph: Path) -> None:
    (problem,) = problems(document(COMPLETION, WORKFLOW, {**ROUTE, "workflow": "cta"}))
    assert problem.endswith(
        "routes./v1/image.workflow: comfyui has no workflow 'cta'; did you mean cat?"
    )


def test_a_route_with_a_workflow_leads_to_a_request_of_the_completion(
    problems: Problems, graph: Path
) -> None:
    (problem,) = problems(document(COMPLETION, WORKFLOW, {**ROUTE, "path": "/other"}))
    assert problem.endswith(
        "routes./v1/image.path: POST /other is not among the completion.requests of comfyui"
    )
