import asyncio
import io
import json
import wave
from typing import Any

import httpx
import pytest

from adapters.openai import speech
from fishs2_daemon import errors
from tests.adapters.openai.harness import RATE, Running, Start

GOOD = {"model": "tts-1", "input": "Good morning"}
WAV = [{}, {"stream": False}, {"stream_format": None}]
STREAMED = [{"stream": True}, {"stream_format": "audio"}, {"response_format": "pcm"}]


def body(**fields: Any) -> bytes:
    return json.dumps(GOOD | fields).encode()


async def post(running: Running, **fields: Any) -> Any:
    return await running.request("POST", "/v1/audio/speech", body(**fields))


def post_bytes(running: Running, version: str = "1.1", **fields: Any) -> bytes:
    data = body(**fields)
    head = f"POST /v1/audio/speech HTTP/{version}\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


@pytest.mark.parametrize("fields", WAV)
async def test_wav_is_whole_by_default(running: Running, fields: dict[str, Any]) -> None:
    answer = await post(running, **fields)
    assert answer.status == 200
    assert answer.headers["content-type"] == "audio/wav"
    assert int(answer.headers["content-length"]) == len(answer.body)
    with wave.open(io.BytesIO(answer.body)) as file:
        assert file.getparams()[:4] == (1, 2, RATE, len(running.service.whole) // 2)
        assert file.readframes(file.getnframes()) == running.service.whole


@pytest.mark.parametrize("fields", STREAMED)
async def test_streams_when_asked(running: Running, fields: dict[str, Any]) -> None:
    running.service.hang_after = 1
    async with httpx.AsyncClient() as client:
        request = client.stream("POST", f"{running.url}/v1/audio/speech", content=body(**fields))
        async with request as response:
            chunks = response.aiter_bytes()
            first = await anext(chunks)
            assert running.service.given == 1
            assert first.startswith(b"RIFF") == ("response_format" not in fields)
            running.service.gate.set()
            rest = b"".join([chunk async for chunk in chunks])
    if "response_format" not in fields:
        assert (first + rest)[44:] == running.service.whole


async def test_whole_pcm(running: Running) -> None:
    answer = await post(running, response_format="pcm", stream=False)
    assert int(answer.headers["content-length"]) == len(answer.body) == 2 * round(5 * 441 * 24000 / RATE)


@pytest.mark.parametrize(("speed", "samples"), [(0.5, 4410), (2, 1102), (1.25, 1764)])
async def test_speed(running: Running, speed: float, samples: int) -> None:
    answer = await post(running, speed=speed)
    assert len(answer.body) == 44 + 2 * samples


async def test_a_whole_answer_beyond_the_bound_goes_on_as_a_stream(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speech, "MAX_WHOLE_BYTES", 2000)
    async with httpx.AsyncClient() as client:
        response = await client.post(f"{running.url}/v1/audio/speech", content=body())
    assert response.headers["transfer-encoding"] == "chunked"
    assert response.content[40:44] == b"\xff\xff\xff\xff"
    assert response.content[44:] == running.service.whole


@pytest.mark.parametrize("path", ["/v1/audio/speech", "/audio/speech", "/v1/audio/speech/"])
async def test_paths(running: Running, path: str) -> None:
    assert (await running.request("POST", path, body())).status == 200


@pytest.mark.parametrize(
    ("voice", "expected"),
    [
        ("", None),
        (" ", None),
        ("Random", None),
        ("default", None),
        ("alloy", None),
        ("Cedar", None),
        (None, None),
        ("echo", "echo"),
        ("anna", "anna"),
        ({"id": "anna"}, "anna"),
        ("../secret", "../secret"),
    ],
)
async def test_voices(running: Running, voice: Any, expected: str | None) -> None:
    await post(running, voice=voice)
    assert running.service.asked[0].voice == expected


@pytest.mark.parametrize(
    ("error", "status", "code", "headers"),
    [
        (errors.TextTooLong("too long"), 413, "text_too_long", {}),
        (errors.UnknownVoice("no such voice"), 404, "voice_not_found", {}),
        (errors.InvalidRequest("wrong"), 422, "invalid_value", {}),
        (errors.Busy("full", retry_after_s=3), 503, "server_busy", {"retry-after": "3"}),
        (errors.Loading("loading"), 503, "engine_loading", {"retry-after": "1"}),
        (errors.ShuttingDown("bye"), 503, "shutting_down", {"retry-after": "1"}),
        (errors.EngineUnavailable("gone"), 503, "engine_unavailable", {"x-should-retry": "false", "retry-after": "1"}),
        (errors.DeadlineExceeded("late"), 504, "deadline_exceeded", {}),
        (errors.WorkerCrashed("crash"), 500, "engine_crashed", {}),
        (errors.EngineError("fault"), 500, "generation_failed", {}),
        (RuntimeError("/etc/secret"), 500, "internal_server_error", {}),
    ],
)
async def test_errors_before_audio(
    running: Running, error: Exception, status: int, code: str, headers: dict[str, str]
) -> None:
    running.service.error = error
    for fields in ({}, {"response_format": "pcm"}):
        answer = await post(running, **fields)
        assert (answer.status, answer.error["code"]) == (status, code)
        assert headers.items() <= answer.headers.items()
        assert b"secret" not in answer.raw
        assert b"Traceback" not in answer.raw


async def test_unexpected_errors_are_logged_with_the_id(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    running.service.error = RuntimeError("a bug")
    answer = await post(running)
    record = next(record for record in caplog.records if record.exc_info)
    assert answer.headers["x-request-id"] in record.getMessage()
    assert "a bug" in caplog.text


async def test_paths_stay_here(running: Running) -> None:
    running.service.error = errors.EngineError("cannot open /usr/lib/x86/libespeak.so: no such file")
    message = (await post(running)).error["message"]
    assert message == "cannot open libespeak.so: no such file"


async def test_an_answer_without_audio_is_an_error(running: Running) -> None:
    running.service.blocks = 0
    assert (await post(running)).error["code"] == "generation_failed"


@pytest.mark.parametrize("error", [errors.WorkerCrashed("crash"), RuntimeError("bug")])
@pytest.mark.parametrize("fields", STREAMED)
async def test_an_error_in_the_stream_breaks_the_body(
    running: Running, fields: dict[str, Any], error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    running.service.error, running.service.fail_after = error, 2
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(f"{running.url}/v1/audio/speech", content=body(**fields))
    assert str(error) in caplog.text
    assert running.service.closed == 1


async def test_http_1_0_gets_a_plain_body(running: Running) -> None:
    answer = await running.exchange(post_bytes(running, "1.0", stream=True))
    head, _, audio = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert b"connection: close" in head
    assert audio[44:] == running.service.whole


async def test_http_1_0_sees_a_reset_for_an_error_in_the_stream(running: Running) -> None:
    running.service.error, running.service.fail_after = errors.WorkerCrashed("crash"), 2
    with pytest.raises(ConnectionResetError):
        await running.exchange(post_bytes(running, "1.0", stream=True))


@pytest.mark.parametrize("fields", [{}, {"stream": True}])
@pytest.mark.parametrize("hang_after", [0, 2])
async def test_leaving_cancels(running: Running, fields: dict[str, Any], hang_after: int) -> None:
    running.service.hang_after = hang_after
    async with running.connection() as (_, writer):
        writer.write(post_bytes(running, **fields))
        await running.until(speaking=True)
        await asyncio.sleep(0.02)
    await running.until(speaking=False, timeout_s=0.5)
    running.service.hang_after = None
    assert (await post(running)).status == 200


@pytest.mark.parametrize("chars", [70_000, 99_000])
async def test_leaving_after_a_large_body_cancels(running: Running, chars: int) -> None:
    running.service.hang_after = 0
    async with running.connection() as (_, writer):
        writer.write(post_bytes(running, input="é" * chars))
        await running.until(speaking=True)
    await running.until(speaking=False, timeout_s=0.5)


async def test_leaving_with_requests_in_the_pipe_cancels(running: Running) -> None:
    running.service.hang_after = 0
    async with running.connection() as (_, writer):
        writer.write(post_bytes(running) * 1000)
        await running.until(speaking=True)
    await running.until(speaking=False, timeout_s=0.5)


async def test_a_reader_that_takes_nothing_is_dropped(start: Start) -> None:
    running = await start(write_timeout_s=0.2)
    running.service.blocks, running.service.block_samples = 400, 22050
    running.service.block = lambda number: bytes(44100)
    async with running.connection(receive_bytes=4096) as (reader, writer):
        writer.write(post_bytes(running, stream=True))
        assert await reader.read(100)
        await asyncio.sleep(0.1)
        assert running.service.running == 1
        await running.until(speaking=False)
        assert running.service.given < 400


async def test_a_slow_whole_answer_arrives(start: Start) -> None:
    running = await start(write_timeout_s=0.5)
    running.service.blocks = 40
    running.service.block = lambda number: bytes([number]) * 44100
    async with running.connection(receive_bytes=65536) as (reader, writer):
        writer.write(post_bytes(running).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
        received = 0
        while chunk := await reader.read(65536):
            received += len(chunk)
            await asyncio.sleep(0.02)
    assert received > 40 * 44100


async def test_long_waits_do_not_end_an_answer(start: Start) -> None:
    running = await start(header_timeout_s=0.1, body_timeout_s=0.1, write_timeout_s=0.1)
    running.service.delay_s = 0.15
    assert len((await post(running)).body) == 44 + len(running.service.whole)
