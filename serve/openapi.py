"""The OpenAPI document of all endpoints, and a plain page of it."""

import html
import json
from collections.abc import Sequence
from typing import Any

from serve.endpoint import Endpoint
from serve.schemas import ERROR
from stablesam_jax.version import __version__

# Statuses of refusals, apart from 400 of what is malformed.
REFUSALS = {
    "400": "malformed, or a prompt that does not fit the picture",
    "401": "the token is missing",
    "403": "a place of pictures that is not allowed, or another machine without a token",
    "404": "the picture is not held",
    "413": "larger than is allowed",
    "502": "the host of a picture fails",
    "503": "too many requests wait",
}
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "pre{overflow:auto;padding:.75rem;border:1px solid #8886;border-radius:6px;font-size:13px}"
    "h2{margin-top:2.5rem}h3{font-family:ui-monospace,monospace;font-size:1rem;margin-bottom:.25rem}p{margin-top:0}"
)


def document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The document, OpenAPI 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "stablesam", "version": __version__, "description": "Masks for boxes and clicks."},
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": ERROR},
        },
        "security": [{"token": []}, {}],
        "paths": {endpoint.path: {endpoint.method.lower(): _operation(endpoint)} for endpoint in endpoints},
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    refused = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    kind = "text/plain" if endpoint.is_text else "application/json"
    operation: dict[str, Any] = {
        "summary": endpoint.about,
        "tags": [endpoint.client],
        "responses": {
            str(endpoint.status): {"description": "done", "content": {kind: {"schema": endpoint.response}}},
            **{status: {"description": why, "content": refused} for status, why in REFUSALS.items()},
        },
    }
    if endpoint.request is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": endpoint.request}}}
    elif endpoint.takes_file:
        content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def page(document: dict[str, Any]) -> str:
    """The document as HTML without scripts."""
    parts = []
    clients: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            clients.setdefault(operation["tags"][0], []).append(_section(method.upper(), path, operation))
    for client, sections in clients.items():
        parts.append(f"<h2>For {html.escape(client)}</h2>{''.join(sections)}")
    refusals = "".join(f"<li>{status}: {html.escape(why)}</li>" for status, why in REFUSALS.items())
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>stablesam API</title><style>{STYLE}</style><h1>stablesam {html.escape(__version__)}</h1>"
        '<p>The same for programs: <a href="/openapi.json">/openapi.json</a>. Try it: <a href="/">the page</a>.</p>'
        f'{"".join(parts)}<h2>Refusals</h2><p>A JSON object with one line, "error".</p><ul>{refusals}</ul></html>'
    )


def _section(method: str, path: str, operation: dict[str, Any]) -> str:
    content = operation.get("requestBody", {}).get("content", {})
    schema = next((kind["schema"] for kind in content.values()), None)
    shown = "" if schema is None else f"<pre>{html.escape(json.dumps(schema, indent=1))}</pre>"
    return f"<h3>{method} {html.escape(path)}</h3><p>{html.escape(operation['summary'])}</p>{shown}"
