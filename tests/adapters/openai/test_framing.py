"""Bytes that no client library sends."""

import asyncio
import json
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.openai import protocol
from tests.adapters.openai.harness import Answer, Running, Start

SPEECH = b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\n"
BODY = json.dumps({"model": "tts-1", "input": "Hi"}).encode()
VALID = SPEECH + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY


async def drip(running: Running, data: bytes, pause_s: float) -> tuple[bytes, float]:
    """What comes back while `data` is sent byte by byte, and when it had all come."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with running.connection() as (reader, writer), asyncio.timeout(5):
        reading = asyncio.create_task(reader.read())
        for byte in data:
            if reading.done() or writer.is_closing():
                break
            writer.write(bytes([byte]))
            await asyncio.sleep(pause_s)
        return await reading, loop.time() - began


async def test_dripped_header(start: Start) -> None:
    running = await start(header_timeout_s=0.2, body_timeout_s=5)
    raw, took_s = await drip(running, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200, 0.02)
    answer = Answer.parse(raw)
    assert (answer.status, answer.error["code"]) == (408, "request_timeout")
    assert answer.headers["connection"] == "close"
    assert 0.2 <= took_s < 2


@pytest.mark.parametrize("length", [b"Content-Length: 500\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n1f4\r\n"])
async def test_dripped_body(start: Start, length: bytes) -> None:
    running = await start(header_timeout_s=5, body_timeout_s=0.3)
    async with running.connection() as (reader, writer), asyncio.timeout(5):
        writer.write(SPEECH + length)
        reading = asyncio.create_task(reader.read())
        while not reading.done():
            writer.write(b" ")
            await asyncio.sleep(0.02)
        answer = Answer.parse(reading.result())
    assert (answer.status, answer.error["code"]) == (408, "request_timeout")


async def test_dripped_body_of_an_answered_request(start: Start) -> None:
    running = await start(body_timeout_s=0.3)
    async with running.connection() as (reader, writer), asyncio.timeout(5):
        writer.write(b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n")
        assert b"404" in await reader.readline()
        reading = asyncio.create_task(reader.read())
        while not reading.done():
            writer.write(b" ")
            await asyncio.sleep(0.02)
        with suppress(ConnectionResetError):  # a byte that was on its way when the connection ended
            await reading


async def test_half_a_header_and_silence(start: Start) -> None:
    running = await start(header_timeout_s=0.1)
    assert Answer.parse(await running.exchange(b"GET / HT")).status == 408


async def test_idle_connections_close(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "IDLE_TIMEOUT_S", 0.1)
    running = await start()
    assert await running.exchange(b"") == b""
    raw = await running.exchange(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert raw.startswith(b"HTTP/1.1 200")
    assert b"connection: keep-alive" in raw


async def test_oversized_header(running: Running) -> None:
    answer = Answer.parse(await running.exchange(b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000))
    assert (answer.status, answer.error["code"]) == (431, "header_too_large")


@pytest.mark.parametrize(
    "length", [b"Content-Length: 100000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n5F5E100\r\n"]
)
async def test_oversized_body(running: Running, length: bytes) -> None:
    answer = Answer.parse(await running.exchange(SPEECH + length + b"x" * 500_000))
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert not running.service.asked


async def test_the_body_bound_leaves_room_for_every_permitted_text(start: Start) -> None:
    running = await start(max_text_chars=1_000_000)
    text = json.dumps({"model": "tts-1", "input": "\U0001f600" * 1_000_000}).encode()
    assert len(text) > 12_000_000
    assert (await running.request("POST", "/v1/audio/speech", text)).status == 200


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"GET /health HTTP/2.0\r\n\r\n",
        b"GET  /health HTTP/1.1\r\n\r\n",
        b"G\x1b[31mT /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /h\xc3\xa9 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /h\x01 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET ?x=1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET http://localhost HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET http://a\x1bb/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n folded: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nA : b\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: b\nB: c\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: \x00\r\n\r\n",
        SPEECH + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        SPEECH + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
        SPEECH + b"Content-Length: +5\r\n\r\nhello",
        SPEECH + b"Content-Length: 0x5\r\n\r\nhello",
        SPEECH + "Content-Length: ٥\r\n\r\nhello".encode(),
        SPEECH + b"Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        SPEECH + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        SPEECH + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
        SPEECH + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n",
        SPEECH + b"Transfer-Encoding: chunked\r\n\r\n0\r\nTrailer: x\r\n\r\n",
        SPEECH + b"Transfer-Encoding: chunked\r\n\r\n" + b"5;" + b"x" * 100,
    ],
)
async def test_malformed(running: Running, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    answer = Answer.parse(await running.exchange(data))
    assert (answer.status, answer.error["code"]) == (400, "bad_request")
    assert answer.headers["connection"] == "close"
    assert not running.service.asked
    assert "Traceback" not in caplog.text
    assert "\x1b" not in caplog.text


async def test_chunked_body(running: Running) -> None:
    chunks = b"".join(b"%x\r\n%b\r\n" % (1, bytes([byte])) for byte in BODY) + b"0\r\n\r\n"
    answer = Answer.parse(
        await running.exchange(SPEECH + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    )
    assert answer.status == 200


async def test_expect_continue(running: Running) -> None:
    async with running.connection() as (reader, writer), asyncio.timeout(5):
        writer.write(SPEECH + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        assert await reader.readline() == b"HTTP/1.1 100 Continue\r\n"
        writer.write(BODY)
        await reader.readline()
        assert b" 200 " in await reader.readline()


async def test_no_continue_for_a_refused_body(running: Running) -> None:
    refused = SPEECH.replace(b"/audio/speech", b"/nowhere") + b"Expect: 100-continue\r\nContent-Length: 10\r\n\r\n"
    answer = Answer.parse(await running.exchange(refused))
    assert answer.status == 404
    assert answer.headers["connection"] == "close"
    large = SPEECH + b"Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n"
    assert Answer.parse(await running.exchange(large)).status == 413
    strange = SPEECH + b"Expect: a miracle\r\nContent-Length: 0\r\n\r\n"
    assert Answer.parse(await running.exchange(strange)).status == 417


async def test_pipelined_requests(running: Running) -> None:
    get = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"
    post = SPEECH + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    raw = await running.exchange(get + b"\r\n" + post + get + b"Connection: close\r\n\r\n")
    assert raw.count(b"HTTP/1.1 200 OK") == 3
    assert raw.index(b"RIFF") < raw.rindex(b'"list"')


async def test_a_flood_behind_a_running_request_ends_the_connection(running: Running) -> None:
    running.service.hang_after = 0
    async with running.connection() as (reader, writer), asyncio.timeout(5):
        writer.write(SPEECH + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
        await running.until(speaking=True)
        writer.write(b"GET /health HTTP/1.1\r\n\r\n" * 10_000)
        with suppress(ConnectionError):
            assert not await reader.read()
    await running.until(speaking=False)


async def test_a_refused_request_does_not_leave_its_body_behind(start: Start) -> None:
    running = await start(api_keys=["k"])
    post = SPEECH + b"Content-Length: %d\r\n\r\n"
    smuggled = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer k\r\n\r\n"
    raw = await running.exchange(
        post % len(smuggled) + smuggled + b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    assert raw.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 401" in raw
    assert b'"status": "ready"' in raw
    large = post % 100_000 + bytes(100_000) + b"GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = Answer.parse(await running.exchange(large))
    assert (answer.status, answer.headers["connection"]) == (401, "close")


async def test_http_1_0_keep_alive_is_not_assumed(running: Running) -> None:
    answer = Answer.parse(await running.exchange(b"GET /health HTTP/1.0\r\n\r\n"))
    assert answer.status == 200
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("url", ["http://localhost/x", "*", "http://u:p@localhost/x", "//", "/x?", "/x#", "/%", "/;a"])
async def test_odd_urls(running: Running, url: str, caplog: pytest.LogCaptureFixture) -> None:
    for method in ("GET", "OPTIONS"):
        answer = await running.request(method, url)
        assert answer.status in (302, 400, 404, 405)
        assert answer.status == 302 or answer.error["code"]
    assert "Traceback" not in caplog.text


async def test_absolute_url(running: Running) -> None:
    assert (await running.request("GET", "http://localhost/health")).status == 200


async def test_upgrade_is_ignored(running: Running) -> None:
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "x"}
    assert (await running.request("GET", "/health", headers=headers)).status == 200


@pytest.fixture
async def hasty(start: Start, monkeypatch: pytest.MonkeyPatch) -> Running:
    monkeypatch.setattr(protocol, "IDLE_TIMEOUT_S", 0.03)
    monkeypatch.setattr(protocol, "LINGER_S", 0.03)
    return await start(header_timeout_s=0.03, body_timeout_s=0.03)


async def test_whoever_never_stops_sending_is_cut(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LINGER_S", 0.1)
    monkeypatch.setattr(protocol, "LINGER_MOST_S", 0.4)
    running = await start()
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with running.connection() as (reader, writer), asyncio.timeout(5):
        writer.write(SPEECH + b"Content-Length: 100000000\r\n\r\n")
        assert b" 413 " in await reader.readline()
        with suppress(ConnectionError):
            while True:
                writer.write(bytes(1000))
                await writer.drain()
                await asyncio.sleep(0.01)
    assert 0.35 < loop.time() - began < 2


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=200)
    | st.tuples(st.integers(0, 150), st.integers(0, 9), st.binary(max_size=6)).map(
        lambda cut: VALID[: cut[0]] + cut[2] + VALID[cut[0] + cut[1] :]
    )
)
async def test_any_bytes(hasty: Running, caplog: pytest.LogCaptureFixture, data: bytes) -> None:
    """Whatever comes, what goes back is well formed, and nothing unexpected happens inside."""
    raw = await hasty.exchange(data)
    assert bool(raw) == bool(data)
    if raw:
        answer = Answer.parse(raw)
        assert answer.headers["x-request-id"]
        assert answer.status < 500
        assert answer.status == 200 or answer.error["code"]
    assert "Traceback" not in caplog.text
