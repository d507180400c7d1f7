"""`stream_format: sse`."""

import base64
import json
from typing import Any

import httpx
import pytest

from fishs2_daemon import errors
from tests.adapters.openai.harness import Running
from tests.audio.signals import decoded


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "gpt-4o-mini-tts", "input": "Good morning", "stream_format": "sse", **fields}


async def events(running: Running, **fields: Any) -> list[tuple[str | None, dict[str, Any]]]:
    """Names and data, parsed as a browser does it."""
    async with httpx.AsyncClient() as client:
        response = await client.post(f"{running.url}/v1/audio/speech", json=body(**fields))
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-fishs2-engine"] == "fake"
    assert "content-disposition" not in response.headers
    assert response.text.endswith("\n\n")
    found = []
    for block in response.text.removesuffix("\n\n").split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        assert lines.keys() <= {"event", "data"}
        found.append((lines.get("event"), json.loads(lines["data"])))
    return found


def audio_of(found: list[tuple[str | None, dict[str, Any]]]) -> bytes:
    assert all(data["type"] == "speech.audio.delta" for _, data in found)
    return b"".join(base64.b64decode(data["audio"], validate=True) for _, data in found)


async def test_audio_then_usage(running: Running) -> None:
    *deltas, (_, done) = await events(running)
    assert len(deltas) >= running.service.blocks
    assert audio_of(deltas)[44:] == running.service.whole
    # 12 characters; 0.1 s are 2.2 frames of the model.
    assert done == {
        "type": "speech.audio.done", "usage": {"input_tokens": 3, "output_tokens": 3, "total_tokens": 6}
    }  # fmt: skip


@pytest.mark.parametrize("name", ["mp3", "opus", "flac", "aac", "pcm"])
async def test_formats(running: Running, name: str) -> None:
    running.service.blocks = 50
    *deltas, (_, done) = await events(running, response_format=name, stream=False)
    audio = audio_of(deltas)
    seconds = len(audio) / 48000 if name == "pcm" else (lambda wave, rate: len(wave) / rate)(*decoded(audio))
    assert seconds == pytest.approx(1.0, abs=0.09)
    assert done["type"] == "speech.audio.done"


async def test_the_first_event_comes_before_the_end(running: Running) -> None:
    running.service.hang_after = 1
    async with httpx.AsyncClient() as client:
        request = client.stream("POST", f"{running.url}/v1/audio/speech", json=body())
        async with request as response:
            lines = response.aiter_lines()
            first = json.loads((await anext(lines)).removeprefix("data: "))
            assert first["type"] == "speech.audio.delta"
            assert running.service.given == 1
            running.service.gate.set()
            assert "speech.audio.done" in "".join([line async for line in lines])


@pytest.mark.parametrize(
    ("error", "code"),
    [(errors.WorkerCrashed("crash in /srv/x.so"), "engine_crashed"), (RuntimeError("/srv"), "internal_server_error")],
)
async def test_an_error_on_the_way_is_the_last_event(running: Running, error: Exception, code: str) -> None:
    running.service.error, running.service.fail_after = error, 2
    *deltas, (name, data) = await events(running)
    assert audio_of(deltas)[44:] == running.service.block(0) + running.service.block(1)
    assert (name, data["type"], data["error"]["code"]) == ("error", "error", code)
    assert set(data["error"]) == {"message", "type", "param", "code"}
    assert "/srv" not in json.dumps(data)


async def test_an_error_before_has_a_status(running: Running) -> None:
    running.service.error = errors.Busy("full")
    answer = await running.request("POST", "/v1/audio/speech", json.dumps(body()).encode())
    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "server_busy", "1")
