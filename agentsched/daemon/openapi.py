"""The OpenAPI document of the daemon's own endpoints, made from the types that they are served with.

The dashboard's view is not in it: page and daemon are of one version, and its form changes with any.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from agentsched import __version__
from agentsched.daemon.errors import Failure
from agentsched.daemon.operations import Operation

_REFERENCE = "#/components/schemas/{name}"
_PARAMETER = re.compile(r"\{(\w+)\}")
_EVERY_REFUSAL = {"open": (), "tenant": (401, 403), "admin": (401, 403)}
_KEY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """OpenAPI 3.1."""
    types = _types(operations)
    (*schemas,), components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    known = dict(zip(map(id, types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        described = _described(operation, known, components)
        paths.setdefault(operation.path, {})[operation.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "agentsched",
            "version": __version__,
            "description": "Programs, tenants, the daemon; the APIs that agents speak are their vendors', "
            "and the dashboard's view is its page's own.",
        },
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": _KEY_SCHEMES},
    }


def _types(operations: Sequence[Operation]) -> list[Any]:
    found: dict[int, Any] = {id(Failure): Failure}
    for operation in operations:
        for kind in (operation.body, *operation.answers.values()):
            if kind is not None and kind is not str:
                found[id(kind)] = kind
    return list(found.values())


def _described(operation: Operation, known: dict[int, Any], components: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": operation.run.__qualname__.replace("._", "."),
        "parameters": [*_path_parameters(operation), *_query_parameters(operation, components)],
        "responses": _responses(operation, known),
        "security": [] if operation.realm == "open" else [{"bearer": []}, {"header": []}],
    }
    if operation.body is not None:
        content = {"application/json": {"schema": known[id(operation.body)]}}
        required = any(field.required for field in msgspec.structs.fields(operation.body))
        described["requestBody"] = {"required": required, "content": content}
    return described


def _responses(operation: Operation, known: dict[int, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, kind in operation.answers.items():
        responses[str(status)] = told = {"description": HTTPStatus(status).phrase}
        if kind is not None:
            schema = {"type": "string"} if kind is str else known[id(kind)]
            told["content"] = {operation.media_type: {"schema": schema}}  # type: ignore[assignment]
    refused = {400, *operation.refusals, *_EVERY_REFUSAL[operation.realm]}
    if operation.body is not None:
        refused.add(413)
    for status in sorted(refused - operation.answers.keys()):
        responses[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": {"application/json": {"schema": known[id(Failure)]}},
        }
    return responses


def _path_parameters(operation: Operation) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in _PARAMETER.findall(operation.path)
    ]


def _query_parameters(operation: Operation, components: dict[str, Any]) -> list[dict[str, Any]]:
    if operation.query is None:
        return []
    (_,), own = msgspec.json.schema_components([operation.query], ref_template=_REFERENCE)
    fields = own.pop(operation.query.__name__)
    components.update(own)
    return [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in fields["properties"].items()
    ]
