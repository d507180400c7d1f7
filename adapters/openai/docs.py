"""`/openapi.json`, and the same for people at `/docs`: one page without scripts, which needs nothing from elsewhere."""

import functools
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from sanic import HTTPResponse, Request

from adapters.openai import openapi
from adapters.openai.errors import json_response

#: Nothing is loaded, and no other page shows this one inside of itself.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "td,th{text-align:left;padding:.2rem 1rem .2rem 0;vertical-align:top}code,pre{font-family:ui-monospace,monospace}"
)

_EXAMPLE = """curl http://{host}/v1/audio/speech -H 'Content-Type: application/json' \\
  -d '{{"model": "s2-pro", "input": "Good morning.", "response_format": "mp3"}}' -o hello.mp3"""


async def document(_: Request) -> HTTPResponse:
    return json_response(openapi.document())


async def page(request: Request) -> HTTPResponse:
    example = escape(_EXAMPLE.format(host=request.host))
    html = _html().replace("EXAMPLE", example)
    return HTTPResponse(html, headers={"content-security-policy": _POLICY}, content_type="text/html; charset=utf-8")


async def to_page(_: Request) -> HTTPResponse:
    return HTTPResponse(status=302, headers={"location": "/docs"}, content_type="text/plain")


@functools.cache
def _html() -> str:
    document = openapi.document()
    title, schemas = escape(document["info"]["title"]), document["components"]["schemas"]
    urls = [
        (f"<code>{method.upper()} {escape(path)}</code>", escape(operation["summary"]))
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if method != "parameters"
    ]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
        f"<h1>{title} {escape(document['info']['version'])}</h1><p>{escape(document['info']['description'])} "
        '<a href="/openapi.json">openapi.json</a></p><pre>EXAMPLE</pre>'
        f"<h2>URLs</h2>{_table(urls)}<h2>Fields of /v1/audio/speech</h2>{_table(_fields(schemas['Speech'], schemas))}"
        f"<h2>Fields of an upload</h2>{_table(_fields(schemas['Upload'], schemas))}"
    )


def _fields(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        told = _kind(field, schemas)
        if name in required:
            told += ", required"
        elif isinstance(default := field.get("default"), str | float) and default:
            told += f", otherwise {default}"
        yield f"<code>{escape(name)}</code>", escape(told)


def _kind(field: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    match field:
        case {"anyOf": choices}:
            return " or ".join(_kind(choice, schemas) for choice in choices if choice.get("type") != "null")
        case {"$ref": target}:
            return f"object of {', '.join(schemas[target.rpartition('/')[2]]['properties'])}"
        case {"enum": choices}:
            return ", ".join(map(str, choices))
        case {"type": "array", "items": item}:
            return f"list of {_kind(item, schemas)}"
    told = str(field.get("description", field.get("type", "anything")))
    if "minimum" in field and "maximum" in field:
        return f"{told}, {field['minimum']} to {field['maximum']}"
    return told


def _table(rows: Iterator[tuple[str, str]] | list[tuple[str, str]]) -> str:
    return "<table>" + "".join(f"<tr><td>{name}<td>{meaning}" for name, meaning in rows) + "</table>"
