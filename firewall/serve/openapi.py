"""The OpenAPI description of the REST API, and a page that shows it."""

from __future__ import annotations

import html
from functools import cache
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from pydantic.json_schema import models_json_schema

from firewall import __version__
from firewall.serve.rest_models import Error, InferenceRequest, InferenceResponse, NativeBody
from firewall.wire import firewall_pb2 as native
from firewall.wire import open_inference_pb2 as oip

PATH = "/openapi.json"

_ERRORS = {
    "400": "The request is malformed; `field` names the part that is wrong.",
    "401": "The client is unknown.",
    "403": "Rows are suspected to be adversarial; nothing of the request is answered.",
    "404": "No such model or version.",
    "413": "The body is over the size limit.",
    "415": "The body's media type or content coding is not served.",
    "429": "Too many requests; `Retry-After` says when to come back.",
    "499": "The body did not arrive in time.",
    "500": "Internal error.",
    "502": "The classifier behind the firewall failed.",
    "503": "The model is not ready, or the server is shutting down.",
    "504": "The deadline passed.",
}
#: Errors of every path but those of health.
_CLIENT = ("400", "401", "500")
_MODEL = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
_VERSION = {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}


@cache
def document() -> dict[str, Any]:
    """Describe every route."""
    models = (InferenceRequest, InferenceResponse, NativeBody, Error)
    _, schemas = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    ready = _object(name={"type": "string"}, ready={"type": "boolean"})
    statistics = _message(oip.ModelStatisticsResponse)
    index = {"type": "array", "items": _message(oip.RepositoryIndexResponse.ModelIndex)}
    server = _object(
        name={"type": "string"},
        version={"type": "string"},
        extensions={"type": "array", "items": {"type": "string"}},
    )
    predict, screen = _message(native.PredictResponse), _message(native.ScreenResponse)
    paths: dict[str, Any] = {
        "/v2": {"get": _get("Describe the server", server, *_CLIENT)},
        "/v2/health/live": {
            "get": _get("Whether the process lives", _object(live={"type": "boolean"}))
        },
        "/v2/health/ready": {
            "get": _get("Whether every model is ready", _object(ready={"type": "boolean"}), "503")
        },
        "/v2/repository/index": {
            "post": _get("List the models", index, *_CLIENT, "400", "413", "415", "429", "503")
            | {
                "requestBody": {
                    "content": {"application/json": {"schema": _object(ready={"type": "boolean"})}}
                }
            }
        },
        "/v2/models/stats": {"get": _get("Statistics of all models", statistics, *_CLIENT)},
        "/firewall/v1/models/{model}:predict": {
            "post": _native("Screen rows and answer labels", predict)
        },
        "/firewall/v1/models/{model}:screen": {"post": _native("Screen rows", screen)},
    }
    for prefix, parameters in (
        ("/v2/models/{model}", [_MODEL]),
        ("/v2/models/{model}/versions/{version}", [_MODEL, _VERSION]),
    ):
        for suffix, summary, schema, errors in (
            ("", "Describe inputs and outputs", _message(oip.ModelMetadataResponse), ()),
            ("/ready", "Whether a model is ready", ready, ("503",)),
            ("/config", "Describe a model as Triton does", _message(oip.ModelConfig), ()),
            ("/stats", "Statistics of a model", statistics, ()),
        ):
            operation = _get(summary, schema, *_CLIENT, "404", *errors)
            paths[prefix + suffix] = {"get": operation | {"parameters": parameters}}
        paths[f"{prefix}/infer"] = {"post": _infer(parameters)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Robustness firewall",
            "version": __version__,
            "description": "The Open Inference Protocol v2, guarded, and the native API.",
        },
        "paths": paths,
        "components": {"schemas": schemas["$defs"]},
    }


def page() -> str:
    """A page that lists the routes, without scripts."""
    rows = "".join(
        f"<tr><td>{method.upper()}</td><td><code>{html.escape(path)}</code></td>"
        f"<td>{html.escape(operation['summary'])}</td></tr>"
        for path, methods in document()["paths"].items()
        for method, operation in methods.items()
    )
    return (
        "<!doctype html><meta charset=utf-8><title>Robustness firewall</title>"
        "<style>body{font:16px system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "td{padding:.2rem 1rem .2rem 0;vertical-align:top}</style>"
        f"<h1>Robustness firewall {html.escape(__version__)}</h1>"
        f"<p>The machine-readable description is <a href={PATH}>{PATH}</a>.</p>"
        f"<table>{rows}</table>"
    )


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _failures(*codes: str) -> dict[str, Any]:
    return {
        code: {"description": _ERRORS[code], "content": _json(_reference("Error"))}
        for code in codes
    }


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _message(message: type[Message]) -> dict[str, Any]:
    """The schema of what `rest_converters.message_json` makes of a protobuf message."""
    return _described(cast(Descriptor, message.DESCRIPTOR))


def _described(descriptor: Descriptor) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    required = []
    for field in descriptor.fields:
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            value = kind.fields_by_name["value"]
            properties[field.name] = {"type": "object", "additionalProperties": _scalar(value)}
        else:
            single = _scalar(field) if kind is None else _described(kind)
            properties[field.name] = (
                {"type": "array", "items": single} if field.is_repeated else single
            )
        if field.is_repeated or not (field.has_presence or field.type == field.TYPE_BYTES):
            required.append(field.name)
    return {"type": "object", "properties": properties, "required": required}


def _scalar(field: FieldDescriptor) -> dict[str, Any]:
    if field.enum_type is not None:
        return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
    if field.type == field.TYPE_BYTES:
        return {"type": "string", "contentEncoding": "base64"}
    if field.type == field.TYPE_BOOL:
        return {"type": "boolean"}
    if field.type == field.TYPE_STRING:
        return {"type": "string"}
    # Neither NaN nor infinity is JSON.
    floating = field.type in (field.TYPE_DOUBLE, field.TYPE_FLOAT)
    return {"type": ["number", "null"]} if floating else {"type": "integer"}


def _get(summary: str, schema: dict[str, Any], *errors: str) -> dict[str, Any]:
    responses = {"200": {"description": "Success", "content": _json(schema)}}
    described = _failures(*errors)
    if "503" in described:
        # Not an error: the same answer, with `ready` false.
        described["503"] = {"description": "Not ready.", "content": _json(schema)}
    return {"summary": summary, "responses": responses | described}


def _infer(parameters: list[dict[str, Any]]) -> dict[str, Any]:
    binary = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "required": False,
        "description": "Length of the JSON where tensors follow it as binary data.",
        "schema": {"type": "integer", "minimum": 0},
    }
    octets = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    return {
        "summary": "Screen a batch and answer it",
        "parameters": [*parameters, binary],
        "requestBody": {
            "required": True,
            "content": _json(_reference("InferenceRequest")) | octets,
        },
        "responses": {
            "200": {
                "description": "Success",
                "content": _json(_reference("InferenceResponse")) | octets,
            }
        }
        | _failures(*_ERRORS),
    }


def _native(summary: str, schema: dict[str, Any]) -> dict[str, Any]:
    files = {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"image": {"type": "string", "format": "binary"}},
                "required": ["image"],
            }
        }
    }
    images = {
        f"image/{kind}": {"schema": {"type": "string", "format": "binary"}}
        for kind in ("jpeg", "png", "webp")
    }
    return {
        "summary": summary,
        "parameters": [_MODEL],
        "requestBody": {
            "required": True,
            "content": _json(_reference("NativeBody")) | files | images,
        },
        "responses": {"200": {"description": "Success", "content": _json(schema)}}
        | _failures(*_ERRORS),
    }
