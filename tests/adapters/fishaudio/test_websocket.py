"""The WebSocket under the live protocol."""

import asyncio
import socket
import struct

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus

from adapters.fishaudio import live, websocket
from adapters.openai.context import LARGE_BODIES
from tests.adapters.fishaudio.harness import error_of, peer_of
from tests.adapters.openai.harness import Running, Start

LONG = "This sentence is spoken for a good while, so that there is time to leave. " * 50


async def test_pings_are_answered_while_it_speaks(speaking: Running) -> None:
    async with peer_of(speaking) as peer:
        await peer.start(text=LONG)
        await peer.event()
        for _ in range(5):
            pong = asyncio.ensure_future(await peer.connection.ping())
            while not pong.done():
                await peer.event()
        assert peer.audio_s < 60
        peer.connection.transport.abort()


async def test_a_message_that_is_too_large(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "max_body_bytes", lambda settings: 1000)
    async with peer_of(running) as peer:
        await peer.say("start", request={"text": "", "x": b"a" * 1_000_000})
        assert "too large" in await peer.error()
        assert peer.connection.close_code == 1009


async def test_after_start_messages_are_no_larger_than_a_text(start: Start) -> None:
    running = await start(max_text_chars=10)
    running.service.hang_after = 1
    async with peer_of(running) as peer:
        await peer.start()
        await peer.event()
        await peer.say("text", text="", more=b"a" * 300_000)
        assert "too large" in await peer.error()


async def test_fragments(running: Running) -> None:
    message = msgpack.packb({"event": "start", "request": {"text": "Hello.", "format": "pcm"}})
    async with peer_of(running) as peer:
        await peer.connection.send(message[at : at + 7] for at in range(0, len(message), 7))
        await peer.say("stop")
        assert (await peer.finish())["reason"] == "stop"
    assert [part async for part in running.service.asked[0].text] == ["Hello."]


async def test_first_messages_behind_the_handshake(running: Running) -> None:
    """A client that does not wait for the answer."""
    head = (
        b"GET /v1/tts/live HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    async with running.connection() as (reader, writer):
        for event in ({"event": "start", "request": {"text": "Hi.", "format": "pcm"}}, {"event": "stop"}):
            payload = msgpack.packb(event)
            head += bytes([0x82, 0x80 | len(payload), 0, 0, 0, 0]) + payload
        writer.write(head)
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        lines = answer.decode().lower().split("\r\n")
        assert lines[0].startswith("http/1.1 101 ")
        assert "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=" in lines
        assert "connection: upgrade" in lines
        assert any(line.startswith("x-request-id: ") for line in lines)
        assert not any(line.startswith(("content-length", "transfer-encoding")) for line in lines)
        assert b"finish" in await asyncio.wait_for(reader.readuntil(b"stop"), 5)


async def test_no_websocket(running: Running) -> None:
    answer = await running.request("GET", "/v1/tts/live")
    assert (answer.status, answer.headers["upgrade"]) == (426, "websocket")
    assert "WebSocket" in error_of(answer)
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    answer = await running.request("GET", "/v1/tts/live", headers={**upgrade, "Sec-WebSocket-Key": "short"})
    assert answer.status == 400
    error_of(answer)
    assert (await running.request("POST", "/v1/tts/live")).status == 405


async def test_access_is_checked(start: Start) -> None:
    running = await start(api_keys=["secret"])
    with pytest.raises(InvalidStatus) as refused:
        async with peer_of(running):
            pass
    assert refused.value.response.status_code == 401
    with pytest.raises(InvalidStatus) as refused:
        async with peer_of(
            running, origin="https://example.com", additional_headers={"Authorization": "Bearer secret"}
        ):
            pass
    assert refused.value.response.status_code == 403
    async with peer_of(running, additional_headers={"Authorization": "Bearer secret"}) as peer:
        await peer.start()
        await peer.say("stop")
        assert (await peer.finish())["reason"] == "stop"


@pytest.mark.parametrize("how", ["close", "abort", "half"])
async def test_leaving_cancels_the_work(speaking: Running, how: str) -> None:
    async with peer_of(speaking) as peer:
        await peer.start(text=LONG)
        await peer.event()
        assert speaking.service.running == 1
        left = asyncio.get_running_loop().time()
        if how == "close":
            await peer.connection.close()
        elif how == "half":
            peer.connection.transport.write_eof()
        else:
            peer.connection.transport.abort()
        await speaking.until(speaking=False)
        assert asyncio.get_running_loop().time() - left < 1


async def test_a_peer_that_does_not_read(speaking: Running) -> None:
    """Its audio waits, its pings are not answered one by one, and in the end it is dropped."""
    speaking.settings.write_timeout_s = 0.5
    async with peer_of(speaking, max_queue=1, write_limit=1) as peer:
        raw = peer.connection.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await peer.start(text=LONG)
        await speaking.until(speaking=True)
        peer.connection.transport.pause_reading()
        await speaking.until(speaking=False, timeout_s=10)
        peer.connection.transport.abort()


async def test_few_large_messages_are_in_memory(start: Start) -> None:
    running = await start(max_text_chars=1)
    large = running.door._context.large_bodies
    for _ in range(LARGE_BODIES):
        await large.acquire()
    async with peer_of(running) as peer:
        sending = asyncio.create_task(peer.start(more=b"a" * 8_000_000))
        await asyncio.sleep(0.3)
        (connection,) = running.door._connections()
        assert not running.service.asked
        assert not connection.transport.is_reading()
        large.release()
        await asyncio.wait_for(sending, 3)
        await peer.say("stop")
        assert (await peer.finish())["reason"] == "stop"
    assert large._value == 1


async def test_the_end_of_the_daemon(start: Start) -> None:
    running = await start()
    running.service.hang_after = 1
    async with peer_of(running) as idle, peer_of(running) as busy:
        await busy.start()
        await busy.event()
        await running.door.stop_accepting()
        draining = asyncio.create_task(running.door.drain(5))
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(idle.connection.recv(), 1)
        running.service.gate.set()
        assert (await busy.finish())["reason"] == "stop"
        await asyncio.wait_for(draining, 3)


async def test_frames_that_break_the_protocol(running: Running) -> None:
    began = asyncio.get_running_loop().time()
    for frame in (b"\xff\xff\xff\xff", b"\x82\x01a", b"\x83\x80aaaa", b"\x82\xff" + struct.pack(">Q", 2**62) + b"aaaa"):
        async with peer_of(running) as peer:
            peer.connection.transport.write(frame)
            assert "protocol was broken" in await peer.error()
            assert peer.connection.close_code in (1002, 1009)
    assert asyncio.get_running_loop().time() - began < websocket.CLOSING_S


async def test_a_flood_of_pings_takes_nobody_s_place(start: Start) -> None:
    running = await start(max_text_chars=1)
    large = running.door._context.large_bodies
    async with peer_of(running) as peer:
        ping = b"\x89\xfd\x00\x00\x00\x00" + b"p" * 125
        for _ in range(50):
            peer.connection.transport.write(ping * 100)
            await asyncio.sleep(0)
        await (await peer.connection.ping())
        assert large._value == LARGE_BODIES
        await peer.start()
        await peer.say("stop")
        assert (await peer.finish())["reason"] == "stop"
    assert large._value == LARGE_BODIES


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(min_size=1, max_size=60))
async def test_any_bytes_leave_nothing_behind(running: Running, data: bytes) -> None:
    async with peer_of(running) as peer:
        peer.connection.transport.write(data)
        peer.connection.transport.write(b"\xff" * 200)
        await asyncio.wait_for(peer.connection.wait_closed(), 5)
    async with asyncio.timeout(3):
        while running.door._connections():
            await asyncio.sleep(0.005)
