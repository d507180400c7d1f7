"""fish-speech's own API."""

import json
from typing import Any

import msgpack
import pytest

from tests.adapters.fishaudio.harness import multipart, post
from tests.adapters.openai.harness import Answer, Running
from tests.voices.sounds import wav

JSON = {"Accept": "application/json"}


def error_of(answer: Answer) -> str:
    body = json.loads(answer.body)
    assert set(body) == {"success", "statusCode", "message", "error"}
    assert (body["success"], body["statusCode"]) == (False, answer.status)
    return str(body["message"])


async def add(running: Running, name: str, **headers: str) -> Answer:
    body, kind = multipart(("id", name), ("text", "Words."), ("audio", wav()))
    return await running.request("POST", "/v1/references/add", body, kind | headers)


async def listed(running: Running) -> list[str]:
    answer = await running.request("GET", "/v1/references/list?format=json")
    body = json.loads(answer.body)
    assert set(body) == {"success", "message", "reference_ids"}
    return list(body["reference_ids"])


async def change(running: Running, method: str, path: str, body: dict[str, str]) -> Answer:
    headers = {"Content-Type": "application/json", **JSON}
    return await running.request(method, f"/v1/references/{path}", json.dumps(body).encode(), headers)


async def test_health(running: Running) -> None:
    for method in ("GET", "POST"):
        answer = await running.request(method, "/v1/health")
        assert json.loads(answer.body) == {"status": "ok"}


async def test_a_reference_and_its_names(running: Running) -> None:
    answer = await add(running, "My Voice")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/msgpack")
    said = msgpack.unpackb(answer.body)
    assert (said["success"], said["reference_id"]) == (True, "My Voice")
    assert json.loads((await add(running, "other", **JSON)).body)["reference_id"] == "other"
    assert await listed(running) == ["my-voice", "other"]
    twice = await add(running, "my voice")
    assert twice.status == 409
    assert "there is a voice 'my-voice' already" in error_of(twice)
    assert (await post(running, "/v1/tts", {"text": "Hi", "reference_id": "My Voice"})).status == 200
    assert running.service.asked[0].voice == "my-voice"
    names = {"old_reference_id": "My Voice", "new_reference_id": "Your Voice"}
    answer = await change(running, "POST", "update", names)
    assert json.loads(answer.body) == {"success": True, "message": "Reference 'My Voice' was renamed.", **names}
    assert await listed(running) == ["other", "your-voice"]
    answer = await change(running, "DELETE", "delete", {"reference_id": "Your Voice"})
    assert json.loads(answer.body)["success"] is True
    body = msgpack.packb({"reference_id": "other"})
    answer = await running.request("DELETE", "/v1/references/delete", body, {"Content-Type": "application/msgpack"})
    assert msgpack.unpackb(answer.body)["reference_id"] == "other"
    assert await listed(running) == []


@pytest.mark.parametrize("name", ["", "../up", "a/b", "ä", "a" * 256, "--", "."])
async def test_names_that_are_none(running: Running, name: str) -> None:
    answer = await add(running, name)
    assert answer.status == 422
    assert "letters, digits, spaces" in error_of(answer)
    assert await listed(running) == []


@pytest.mark.parametrize("name", ["nobody", "../ben", "Ben/", "%2e%2e", "ben "])
async def test_unknown_references(running: Running, name: str) -> None:
    await add(running, "ben")
    for method, path, body in (
        ("DELETE", "delete", {"reference_id": name}),
        ("POST", "update", {"old_reference_id": name, "new_reference_id": "new"}),
    ):
        answer = await change(running, method, path, body)
        if name == "ben ":  # a name with a space, which the id has not
            assert answer.status == 200
            return
        assert answer.status == 404
        assert "there is no stored voice" in error_of(answer)
    assert await listed(running) == ["ben"]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([("id", "a"), ("audio", wav())], "text: "),
        ([("id", "a"), ("text", "Words.")], "audio: one recording"),
        ([("id", "a"), ("text", "Words."), ("audio", "no file")], "audio: one recording"),
        ([("id", "a"), ("text", "Words."), ("audio", b"no audio")], "upload: "),
    ],
)
async def test_wrong_additions(running: Running, parts: list[tuple[str, str | bytes]], said: str) -> None:
    body, headers = multipart(*parts)
    answer = await running.request("POST", "/v1/references/add", body, headers)
    assert answer.status == 422
    assert said in error_of(answer)


@pytest.mark.parametrize("body", [{}, {"reference_id": 5}, {"reference_id": None}, []])
async def test_wrong_changes(running: Running, body: Any) -> None:
    for method, path in (("DELETE", "delete"), ("POST", "update")):
        answer = await change(running, method, path, body)
        assert answer.status == 422
        error_of(answer)
    await add(running, "ben")
    answer = await change(running, "POST", "update", {"old_reference_id": "ben", "new_reference_id": "../x"})
    assert answer.status == 422
