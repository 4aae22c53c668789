"""The routes as OpenAPI describes them, from the structs that bodies are parsed into."""

from collections.abc import Sequence
from typing import Any

import msgspec


def openapi(routes: Sequence[tuple[str, str, Any, type | None]], version: str) -> dict[str, Any]:
    """routes: method, path, handler, what a body must be."""
    kinds = [kind for _, _, _, kind in routes if kind]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    bodies = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for method, path, handler, kind in routes:
        operation: dict[str, Any] = {
            "operationId": handler.__name__, "responses": {"200": {"description": "done"}, "4XX": {"description": "refused"}},
        }  # fmt: skip
        if "{" in path:
            operation["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
        if kind:
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": bodies[kind]}}}
        paths[path.replace(":path", "")] = {method.lower(): operation}
    return {
        "openapi": "3.1.0", "info": {"title": "numatp", "version": version}, "paths": paths, "components": {"schemas": components},
    }  # fmt: skip
