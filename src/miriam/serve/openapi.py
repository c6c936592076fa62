"""What can be asked over HTTP, as an OpenAPI document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import miriam
from miriam.serve.config import Limits
from miriam.serve.tensors import DATATYPES

__all__ = ["document"]

_TEXT = {"type": "string"}
_WHOLE = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
_BYTES = {"type": "integer", "minimum": 0, "maximum": 2**62 - 1}
_KEY = {"type": "string", "pattern": "^/?[A-Za-z0-9_-]{1,128}$"}
_MODEL = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
_VERSION = {"name": "version", "in": "path", "required": True, "schema": {"enum": ["1"]}}
_FAILURES = {
    400: "What was sent is not what is taken.",
    401: "The token is missing or wrong.",
    403: "Sent by a page of another site, or to another server.",
    404: "There is no such model, version, region or memory.",
    413: "More than may be sent.",
    429: "Too many requests wait.",
    500: "The model failed.",
    503: "The model, or the server, does not answer requests now.",
    504: "The request waited longer than it may.",
}


def document(limits: Limits, models: Sequence[str]) -> dict[str, Any]:
    """The document of a server with these limits and models.

    Of a request for inference it says all but this: names, shapes and datatypes are those of the model, and a tensor
    has as many values as its shape says.
    """
    known = _MODEL | {"schema": {"enum": list(models)}} if models else _MODEL
    paths: dict[str, Any] = {
        "/v2": _get("About the server.", _object(name=_TEXT, version=_TEXT, extensions=_array(_TEXT))),
        "/v2/health/live": _get("Whether the server works.", None, 503),
        "/v2/health/ready": _get("Whether all models are ready.", None, 503),
        "/v2/models/stats": _get("What was counted of all models.", _ref("Statistics")),
        "/v2/repository/index": {
            "get": _operation("All models and their states.", _array(_ref("Model"))),
            "post": _operation(
                "All models and their states.", _array(_ref("Model")), 400, 413,
                body=_properties(ready={"type": "boolean"}),
            ),
        },
        "/v2/repository/models/{model}/load": _with(
            [_MODEL], post=_operation("Load a model as the configuration file has it now.", {}, 400, 404, 413, 503,
                                      body=_properties(parameters={"type": "object", "maxProperties": 0}))
        ),
        "/v2/repository/models/{model}/unload": _with(
            [known], post=_operation("Unload a model.", {}, 400, 404, 413,
                                      body=_properties(parameters={"type": "object"}))
        ),
        "/openapi.json": _get("This document.", {"type": "object"}),
        **_of_regions(),
    }  # fmt: skip
    for at, given in (
        ("/v2/models/{model}", [known]),
        ("/v2/models/{model}/versions/{version}", [known, _VERSION]),
    ):
        paths |= {
            at: _with(given, **_get("Inputs and outputs of a model.", _ref("Metadata"), 404, 503)),
            f"{at}/ready": _with(given, **_get("Whether a model is ready.", None, 404, 503)),
            f"{at}/config": _with(given, **_get("How a model is set up.", {"type": "object"}, 404, 503)),
            f"{at}/stats": _with(given, **_get("What was counted of a model.", _ref("Statistics"), 404, 503)),
            f"{at}/infer": _with(
                given,
                post=_operation(
                    "Ask a model. Tensors may follow the JSON as bytes: see Inference-Header-Content-Length.",
                    _ref("Response"), 400, 404, 413, 429, 500, 503, 504, body=_ref("Request"), required=True,
                    binary=True,
                ),
            ),
        }  # fmt: skip
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Miriam",
            "version": miriam.__version__,
            "description": "The Open Inference Protocol, with Triton's extensions for binary tensors, the repository, "
            "configuration, statistics, shared memory, priority and timeout.",
        },
        "paths": paths,
        "components": {"schemas": _schemas(limits), "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"token": []}],
    }


def _of_regions() -> dict[str, Any]:
    """Triton's extension for the system's shared memory."""
    at, answer = "/v2/systemsharedmemory", _array(_ref("Region"))
    region = {"name": "region", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    memory = _object(key=_KEY, byte_size=_BYTES | {"minimum": 1})
    memory["properties"]["offset"] = _BYTES
    forget = _operation("Forget the memory that clients registered.", {}, 400, 413, body={"type": "object"})
    return {
        f"{at}/status": _get("The shared memory that clients registered.", answer, 400),
        f"{at}/unregister": {"post": forget},
        f"{at}/region/{{region}}/status": _with([region], **_get("One region of it.", answer, 400, 404)),
        f"{at}/region/{{region}}/unregister": _with([region], post=forget),
        f"{at}/region/{{region}}/register": _with(
            [region],
            post=_operation("Register shared memory of this machine, for tensors that inputs and outputs name by the "
                            "parameters shared_memory_region, shared_memory_byte_size and shared_memory_offset.",
                            {}, 400, 404, 413, 429, body=memory, required=True),
        ),
    }  # fmt: skip


def _schemas(limits: Limits) -> dict[str, Any]:
    shape = _array({"type": "integer", "minimum": 0, "maximum": limits.tensor_elements}) | {"maxItems": 32}
    datatype = {"enum": list(DATATYPES)}
    asked = {"name": _TEXT, "parameters": _properties(binary_data={"type": "boolean"})}
    tensor = {"name": _TEXT, "datatype": datatype, "shape": shape}
    spec = _object(name=_TEXT, datatype=datatype, shape=_array({"type": "integer"}))
    return {
        "Error": _object(error=_TEXT),
        "Region": _object(name=_TEXT, key=_TEXT, offset=_WHOLE, byte_size=_WHOLE),
        "Model": _object(name=_TEXT, version=_TEXT, state=_TEXT, reason=_TEXT),
        "Metadata": _object(
            name=_TEXT, versions=_array(_TEXT), platform=_TEXT, inputs=_array(spec), outputs=_array(spec)
        ),
        "Statistics": _object(model_stats=_array({"type": "object"})),
        "Request": {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "id": _TEXT,
                "inputs": _array(
                    {
                        "type": "object",
                        "required": ["name", "datatype", "shape"],
                        "properties": tensor | {"data": _array({}), "parameters": _properties(binary_data_size=_WHOLE)},
                    }
                ),
                "outputs": _array({"type": "object", "required": ["name"], "properties": asked}),
                "parameters": _properties(priority=_WHOLE, timeout=_WHOLE, binary_data_output={"type": "boolean"}),
            },
        },
        "Response": {
            "type": "object",
            "required": ["model_name", "model_version", "outputs"],
            "properties": {
                "model_name": _TEXT,
                "model_version": _TEXT,
                "id": _TEXT,
                "outputs": _array(
                    {
                        "type": "object",
                        "required": ["name", "datatype", "shape"],
                        "properties": tensor | {"data": _array({}), "parameters": _properties(binary_data_size=_WHOLE)},
                    }
                ),
            },
        },
    }


def _get(summary: str, answer: dict[str, Any] | None, *failures: int) -> dict[str, Any]:
    return {"get": _operation(summary, answer, *failures)}


def _operation(
    summary: str, answer: dict[str, Any] | None, *failures: int, body: dict[str, Any] | None = None,
    required: bool = False, binary: bool = False,
) -> dict[str, Any]:  # fmt: skip
    well: dict[str, Any] = {"description": "Done."}
    if answer is not None:
        well["content"] = {"application/json": {"schema": answer}}
    if binary:
        size = {"description": "Bytes of the JSON; tensors follow it.", "schema": _WHOLE}
        well["content"]["application/octet-stream"] = {}
        well["headers"] = {"Inference-Header-Content-Length": size}
    responses = {"200": well} | {
        str(code): {"description": _FAILURES[code], "content": {"application/json": {"schema": _ref("Error")}}}
        for code in sorted({*failures, 401, 403})
    }
    operation: dict[str, Any] = {"summary": summary, "responses": responses}
    if body is not None:
        operation["requestBody"] = {"required": required, "content": {"application/json": {"schema": body}}}
    return operation


def _with(parameters: list[dict[str, Any]], **operations: Any) -> dict[str, Any]:
    return {"parameters": parameters, **operations}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _properties(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}
