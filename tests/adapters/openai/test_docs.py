import html
import json
import re
from typing import cast

import pytest

from adapters.openai import admin
from adapters.openai.schemas import SpeechBody
from adapters.openai.server import ROUTES
from fishs2_daemon.reload import Reload
from tests.adapters.openai.harness import Running, Start


async def test_the_document_names_every_url(running: Running) -> None:
    answer = await running.request("GET", "/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    document = json.loads(answer.body)
    assert document["openapi"].startswith("3.1")
    told = {
        (re.sub(r"\{\w+\}", "{}", path), method.upper())
        for path, operations in document["paths"].items()
        for method in operations.keys() - {"parameters"}
    }
    served = {
        (re.sub(r"<\w+:path>", "{}", route.paths[0]), method)
        for route in (*ROUTES, admin.route(cast(Reload, None)))
        for method in route.methods
        if method != "HEAD" and route.handler.__module__ != "adapters.openai.docs"
    }
    assert told == served


async def test_every_reference_leads_somewhere(running: Running) -> None:
    document = json.loads((await running.request("GET", "/openapi.json")).body)
    references = set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)))
    assert references
    for reference in references:
        node = document
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]
    assert set(document["components"]["schemas"]["Speech"]["properties"]) == set(SpeechBody.model_fields)


async def test_the_page(running: Running) -> None:
    answer = await running.request("GET", "/docs", headers={"Host": "fishbox.local:8020"})
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    page = html.unescape(answer.body.decode())
    assert "curl http://fishbox.local:8020/v1/audio/speech" in page
    assert "<script" not in page
    for told in ("POST /v1/audio/speech", "temperature</code><td>number, 0 to 2", "input</code><td>string, required"):
        assert told in page
    assert (await running.request("HEAD", "/docs")).body == b""


async def test_the_root_leads_to_it(running: Running) -> None:
    answer = await running.request("GET", "/")
    assert (answer.status, answer.headers["location"]) == (302, "/docs")


@pytest.mark.parametrize("path", ["/docs", "/", "/openapi.json"])
async def test_they_need_a_key_where_one_is_needed(start: Start, path: str) -> None:
    running = await start(api_keys=["k"])
    assert (await running.request("GET", path)).status == 401
