"""What the server's own description of its HTTP API promises, held against the server."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from schemathesis import Case, GenerationMode, HookContext
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from schemathesis.schemas import BaseSchema
from serve_support import Running, serving, tensor

from miriam.serve.shared import FOLDER

MODELS = """
limits: {json_values: 20000, tensor_elements: 1000}
models:
  add: {factory: 'nets.py:add', example: [[2], [2]], dtype: int32, inputs: [a, b], criticality: critical, priority: [0, 2]}
  same: {factory: 'nets.py:same', example: [[2, 3]]}
"""  # noqa: E501
INPUTS = {
    "add": [tensor([1, 2], "INT32", "b"), tensor([3, 4], "INT32", "a")],
    "same": [tensor([0.5] * 6, shape=[2, 3])],
}
OUTPUTS = {"add": ["output0", "output1"], "same": ["output0"]}
SETTINGS = {
    "seed": 1,
    "generation": {"max-examples": 15, "deterministic": True, "database": "none"},
    "phases": {"stateful": {"enabled": False}},  # no answer leads to another request
    # A request may ask for less time than it takes, and be told so.
    "checks": {"not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", 504]}},
}
UNLOAD = "/v2/repository/models/{model}/unload"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("described"), MODELS) as running:
        yield running


@pytest.fixture
def described(running: Running) -> Iterator[BaseSchema]:
    """The document, tensors that fit the model, and memory that is there: a schema cannot say what fits what."""
    memory = {"key": f"miriam-test-{uuid.uuid4().hex}", "byte_size": 8}
    file = Path(FOLDER, str(memory["key"]))
    file.write_bytes(bytes(8))

    @schemathesis.hook
    def before_call(context: HookContext, case: Case, kwargs: dict[str, Any]) -> None:
        said = case.meta
        if said is None or said.generation.mode is not GenerationMode.POSITIVE:
            return
        if case.path.endswith("/register"):
            case.path_parameters["region"], case.body = uuid.uuid4().hex, memory
        elif case.path.endswith("/{region}/status"):
            name = case.path_parameters["region"] = uuid.uuid4().hex
            running.client.post(case.path.format(region=name).replace("status", "register"), json=memory)
        if not case.path.endswith("/infer"):
            return
        model, body = case.path_parameters["model"], case.body
        assert isinstance(body, dict)
        body["inputs"] = INPUTS[model]
        if "outputs" in body:
            asked = zip(OUTPUTS[model], body["outputs"], strict=False)
            body["outputs"] = [output | {"name": name} for name, output in asked]

    url = f"{running.client.base_url}/openapi.json"
    yield schemathesis.openapi.from_url(url, config=SchemathesisConfig.from_dict(SETTINGS))
    schemathesis.hooks.unregister(before_call)
    file.unlink()


def failures(schema: BaseSchema) -> tuple[list[str], Counter[str]]:
    """What does not hold, and how many requests of each operation were answered with 200."""
    found, answered = [], Counter[str]()
    for event in from_schema(schema).execute():
        assert not isinstance(event, events.NonFatalError | events.FatalError), event
        if not isinstance(event, events.ScenarioFinished):
            continue
        answered[str(event.label)] += sum(
            exchange.response is not None and exchange.response.status_code == 200
            for exchange in event.recorder.interactions.values()
        )
        for number, checks in event.recorder.checks.items():
            for check in checks:
                if check.failure_info is not None:
                    exchange = event.recorder.interactions[number]
                    answer = exchange.response and (exchange.response.status_code, exchange.response.content[:300])
                    found.append(
                        f"{check.name}: {check.failure_info.failure}\n{check.failure_info.code_sample}\n{answer}"
                    )
    return found, answered


# Unloading comes last: it takes away the models that other requests name.


def test_every_operation_does_what_the_document_says(running: Running, described: BaseSchema) -> None:
    found, answered = failures(described.exclude(path=UNLOAD))
    assert not found, "\n\n".join(found)
    paths = running.client.get("/openapi.json").json()["paths"]
    operations = {f"{method.upper()} {path}" for path in paths for method in paths[path].keys() & {"get", "post"}}
    others = {f"POST {UNLOAD}", "GET /openapi.json"}  # the second one is where all of it comes from
    assert {operation for operation, number in answered.items() if number} == operations - others
    assert all(answered[operation] >= 10 for operation in operations if operation.endswith("/infer")), answered


def test_unloading_does_what_the_document_says(described: BaseSchema) -> None:
    found, answered = failures(described.include(path=UNLOAD))
    assert not found, "\n\n".join(found)
    assert answered[f"POST {UNLOAD}"]
