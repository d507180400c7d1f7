"""Uploads that are large, slow, broken off, or many at once."""

import asyncio
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.openai import context, uploads
from adapters.openai.speech import max_body_bytes
from fishs2_daemon.errors import StorageError
from tests.adapters.openai.harness import Answer, Running, Start
from tests.voices.sounds import encoded, wav

HEAD = b"POST /v1/audio/voices HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=B\r\n"
PART = b'--B\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n'
END = b"\r\n--B--\r\n"
FORM = b'--B\r\nContent-Disposition: form-data; name="type"\r\n\r\nprompt\r\n' + PART + b"x" + END


def spooled(running: Running) -> list[Path]:
    return sorted(running.door._context.references.folder.rglob("*"))


async def gone(running: Running) -> None:
    async with asyncio.timeout(3):
        while spooled(running):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("path", ["/v1/audio/voices", "/v1/audio/speech", "/health", "/nowhere"])
async def test_a_gigabyte_is_refused_by_its_length(running: Running, path: str) -> None:
    async with running.connection() as (reader, writer), asyncio.timeout(5):
        writer.write(HEAD.replace(b"/v1/audio/voices", path.encode()) + b"Content-Length: 1073741824\r\n\r\n")
        writer.write(bytes(1 << 20))
        answer = Answer.parse(await reader.read())
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert answer.headers["connection"] == "close"


async def test_a_client_that_sends_first_and_reads_then_sees_why(running: Running) -> None:
    async def endless() -> Any:
        for _ in range(1024):
            yield bytes(1 << 20)

    async with httpx.AsyncClient(timeout=10) as client:
        response = await client.post(
            f"{running.url}/v1/files", content=endless(), headers={"Content-Length": str(1 << 30)}
        )
    assert response.status_code == 413


async def test_endless_chunks_end_at_the_bound(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "max_body_bytes", lambda _: 3 << 20)
    async with running.connection() as (reader, writer), asyncio.timeout(5):
        writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%b\r\n" % (len(PART), PART))
        with suppress(ConnectionError):
            for _ in range(50):
                writer.write(b"%x\r\n%b\r\n" % (1 << 17, bytes(1 << 17)))
                await writer.drain()
        answer = Answer.parse(await reader.read())
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    await gone(running)


async def test_a_large_upload_is_never_in_memory(running: Running) -> None:
    process, block, blocks = psutil.Process(), bytes(1 << 18), 120
    body_bytes = 3 * (len(PART) + blocks * len(block)) + len(b"\r\n") * 2 + len(END)
    async with running.connection() as (reader, writer), asyncio.timeout(20):
        before = most = process.memory_info().rss
        writer.write(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % body_bytes)
        for end in (b"\r\n", b"\r\n", END):
            writer.write(PART)
            for _ in range(blocks):
                writer.write(block)
                await writer.drain()
                most = max(most, process.memory_info().rss)
            writer.write(end)
        answer = Answer.parse(await reader.read())
    assert answer.error["code"] == "invalid_reference_audio"
    assert body_bytes > 90 << 20
    assert most - before < 20 << 20
    await gone(running)


async def test_a_file_has_a_bound_of_its_own(running: Running) -> None:
    body = PART + bytes(33 << 20) + END
    answer = Answer.parse(await running.exchange(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body))
    assert (answer.status, answer.error["code"], answer.error["param"]) == (413, "upload_too_large", "files")
    await gone(running)


def test_a_full_disk_is_told() -> None:
    with pytest.raises(StorageError, match="No space left"):
        uploads._append(Path("/dev/full"), bytearray(1 << 20))


async def test_whoever_leaves_midway_leaves_nothing(running: Running) -> None:
    async with running.connection() as (_, writer):
        writer.write(HEAD + b"Content-Length: 50000000\r\n\r\n" + PART + bytes(3 << 20))
        while not any(path.is_file() for path in spooled(running)):
            await asyncio.sleep(0.01)
    await gone(running)


async def test_a_form_that_has_come_is_stored_without_its_client(running: Running) -> None:
    body = PART + wav() + END
    async with running.connection() as (_, writer):
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        while not running.door._context._finishing:
            await asyncio.sleep(0.002)
    await gone(running)
    assert [voice.id for voice in running.service.voices()] == ["a", "anna", "echo"]


async def test_closing_waits_for_a_form_that_has_come(running: Running) -> None:
    body = PART + wav() + END
    async with running.connection() as (_, writer):
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        while not running.door._context._finishing:
            await asyncio.sleep(0.002)
        folder = running.door._context.references.folder
        await running.door.close()
    assert "a" in [voice.id for voice in running.service.voices()]
    assert not await asyncio.to_thread(folder.exists)


async def test_uploads_wait_for_each_other(running: Running) -> None:
    async with httpx.AsyncClient(timeout=30) as client:
        slow = []
        for _ in range(context.UPLOADS):
            connection = running.connection()
            _, writer = await connection.__aenter__()
            slow.append(connection)
            writer.write(HEAD + b"Content-Length: 5000\r\n\r\n" + PART)
        while running.door._context.uploads._value:
            await asyncio.sleep(0.005)
        asking = asyncio.create_task(client.post(f"{running.url}/v1/voices", files={"files": ("b.wav", wav())}))
        await asyncio.sleep(0.1)
        assert not asking.done()
        began = time.perf_counter()
        assert (await client.get(f"{running.url}/health")).json()["status"] == "ok"
        assert time.perf_counter() - began < 0.5
        await slow[0].__aexit__(None, None, None)
        assert (await asking).json()["id"] == "b"
        for connection in slow[1:]:
            await connection.__aexit__(None, None, None)


async def test_a_slow_upload_has_its_own_time(start: Start) -> None:
    running = await start(body_timeout_s=0.1)
    body = PART + wav() + END
    async with running.connection() as (reader, writer), asyncio.timeout(10):
        writer.write(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:-10])
        await asyncio.sleep(0.3)
        writer.write(body[-10:])
        assert Answer.parse(await reader.read()).status == 200


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=120)
    | st.tuples(st.integers(0, 120), st.integers(0, 9), st.binary(max_size=6)).map(
        lambda cut: FORM[: cut[0]] + cut[2] + FORM[cut[0] + cut[1] :]
    )
)
async def test_any_form(running: Running, body: bytes) -> None:
    """Also where two requests follow each other on a connection: nobody loses count."""
    post = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    raw = await running.exchange(post + b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert int(raw.split(b" ", 2)[1]) in (400, 413, 422)
    assert b'"status": "ok"' in raw


@pytest.mark.parametrize(
    "bomb",
    [
        encoded("flac", "flac", 200.0, rate=8000, level=0),
        encoded("ogg", "libopus", 200.0, level=0),
        b"RIFF\xff\xff\xff\xffWAVEfmt \x10\x00\x00\x00\x01\x00\xff\xff\xff\xff\xff\xff" + bytes(100),
    ],
)
async def test_bombs(running: Running, bomb: bytes) -> None:
    async with httpx.AsyncClient(timeout=30) as client:
        response = await client.post(f"{running.url}/v1/voices", files={"files": ("b.wav", bomb)})
    assert response.status_code == 422
    assert response.json()["error"]["code"] in ("reference_audio_too_long", "invalid_reference_audio")


async def test_a_large_body_waits_for_its_share(start: Start) -> None:
    running = await start(max_text_chars=1000)
    large = running.door._context.large_bodies
    for _ in range(context.LARGE_BODIES):
        await large.acquire()
    body = json.dumps({"model": "tts-1", "input": "Hi", "unknown": "x" * 2_000_000}).encode()
    asking = asyncio.create_task(running.request("POST", "/v1/audio/speech", body))
    await asyncio.sleep(0.2)
    assert not asking.done()
    small = json.dumps({"model": "tts-1", "input": "Hi"}).encode()
    assert (await running.request("POST", "/v1/audio/speech", small)).status == 200
    large.release()
    assert (await asking).status == 200
    assert len(body) < max_body_bytes(running.settings)
