import asyncio
import json
import logging
from ipaddress import ip_network

import httpx
import pytest

from adapters.openai import protocol
from adapters.openai.server import HttpDoor
from fishs2_daemon import errors
from fishs2_daemon.settings import Settings
from tests.adapters.openai.harness import Answer, FakeService, Running, Start

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
SPEECH = json.dumps({"model": "tts-1", "input": "Hi", "stream": True}).encode()
POST = b"POST /audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(SPEECH) + SPEECH


def open_connections(running: Running) -> float:
    return float(running.service.metrics.connections.labels(door="http")._value.get())


async def test_connection_cap(start: Start) -> None:
    running = await start(http_max_connections=2)
    async with running.connection() as (reader, writer), running.connection():
        await asyncio.sleep(0.02)
        for data in (b"", GET, POST * 100):
            answer = Answer.parse(await running.exchange(data))
            assert (answer.status, answer.error["code"]) == (503, "too_many_connections")
            assert answer.headers["retry-after"] == "1"
        assert open_connections(running) == 2
        writer.write(GET)
        assert b" 200 " in await reader.readline()
    await asyncio.sleep(0.02)
    assert open_connections(running) == 0
    assert (await running.request("GET", "/health")).status == 200


async def test_refused_connections_are_bounded(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_REFUSED", 1)
    monkeypatch.setattr(protocol, "LINGER_S", 0.1)
    running = await start(http_max_connections=1)
    async with running.connection(), running.connection() as (refused, _):
        assert b" 503 " in await refused.readline()
        async with running.connection() as (reader, _):
            assert await reader.read() == b""
        await asyncio.sleep(0.15)
        assert Answer.parse(await running.exchange(GET)).status == 503


async def test_foreign_peers(start: Start) -> None:
    running = await start(allowed_networks="10.0.0.0/8")
    answer = Answer.parse(await running.exchange(GET))
    assert (answer.status, answer.error["code"]) == (403, "address_not_allowed")
    assert "FISHS2_ALLOWED_NETWORKS" in answer.error["message"]
    running.settings.allowed_networks = [ip_network("127.0.0.0/8")]
    assert (await running.request("GET", "/health")).status == 200


async def test_drain_lets_running_answers_end(running: Running) -> None:
    running.service.hang_after = 2
    async with running.connection() as (idle, _), running.connection() as (reader, writer):
        writer.write(POST)
        await running.until(speaking=True)
        await running.door.stop_accepting()
        drain = asyncio.create_task(running.door.drain(5))
        assert await idle.read() == b""
        with pytest.raises(ConnectionRefusedError):
            await running.exchange(b"")
        running.service.gate.set()
        raw = await reader.read()
        assert raw.endswith(b"0\r\n\r\n")
        await asyncio.wait_for(drain, 1)


async def test_drain_cuts_what_does_not_end(running: Running) -> None:
    running.service.hang_after = 2
    async with httpx.AsyncClient() as client:
        asking = asyncio.create_task(client.post(f"{running.url}/audio/speech", content=SPEECH))
        await running.until(speaking=True)
        await asyncio.sleep(0.05)
        await running.door.drain(0.1)
        with pytest.raises(httpx.RemoteProtocolError):
            await asking
    assert running.service.running == 0


async def test_drain_cuts_a_whole_answer_on_its_way(running: Running) -> None:
    running.service.blocks = 100
    running.service.block = lambda number: bytes(44100)
    async with running.connection(receive_bytes=4096) as (reader, writer):
        writer.write(POST.replace(b'"stream": true', b'"stream":false'))
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"content-length: 4410044" in head
        await running.until(speaking=False)
        drain = asyncio.create_task(running.door.drain(0.05))
        await asyncio.sleep(0.1)
        body = await reader.read()
        await drain
    assert len(body) < 4410044
    assert b"shutting_down" not in body


async def test_drain_tells_those_without_an_answer(running: Running) -> None:
    running.service.hang_after = 0
    asking = asyncio.create_task(running.exchange(POST))
    await running.until(speaking=True)
    await running.door.drain(0.1)
    answer = Answer.parse(await asking)
    assert (answer.status, answer.error["code"]) == (503, "shutting_down")
    assert running.service.running == 0


async def test_draining_door_answers_and_closes(running: Running) -> None:
    running.service.hang_after = 2
    async with running.connection() as (reader, writer), running.connection():
        writer.write(POST)
        await running.until(speaking=True)
        drain = asyncio.create_task(running.door.drain(5))
        await asyncio.sleep(0)
        running.service.error = errors.ShuttingDown("bye")
        late = await running.request("GET", "/ready")
        assert (late.status, json.loads(late.body)["state"]) == (503, "stopping")
        assert Answer.parse(await running.exchange(POST)).error["code"] == "shutting_down"
        running.service.error = None
        running.service.gate.set()
        assert (await reader.read()).endswith(b"0\r\n\r\n")
        await drain


async def test_close_cuts_everything(running: Running) -> None:
    running.service.hang_after = 1
    async with running.connection() as (reader, writer), running.connection() as (half, half_writer):
        writer.write(POST)
        half_writer.write(b"GET /hea")
        await running.until(speaking=True)
        await running.door.close()
        assert running.service.running == 0
        assert not (await reader.read()).endswith(b"0\r\n\r\n")
        assert await half.read() == b""
    assert open_connections(running) == 0


async def test_close_without_start() -> None:
    settings = Settings(_env_file=None)
    door = HttpDoor(FakeService(settings), settings)
    await door.stop_accepting()
    await door.drain(1)
    await door.close()


async def test_several_doors(start: Start) -> None:
    doors = [await start(default_model=f"model-{number}") for number in range(3)]
    for number, running in enumerate(doors):
        assert (await running.request("GET", f"/v1/models/model-{number}")).status == 200
    await doors[0].door.close()
    assert (await doors[1].request("GET", "/health")).status == 200


async def test_the_environment_of_sanic_means_nothing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SANIC_REQUEST_MAX_SIZE": "10",
        "SANIC_REQUEST_MAX_HEADER_SIZE": "10",
        "SANIC_KEEP_ALIVE": "false",
        "SANIC_ACCESS_LOG": "true",
        "SANIC_AUTO_EXTEND": "true",
        "SANIC_RESPONSE_TIMEOUT": "0",
    }.items():
        monkeypatch.setenv(name, value)
    running = await start()
    async with running.connection() as (reader, writer):
        writer.write(POST)
        assert b" 200 " in await reader.readline()


async def test_one_log_line_a_request(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    headers = {"X-Request-ID": "my-id", "Authorization": "Bearer secret"}
    await running.request("GET", "/v1/models?key=secret", headers=headers)
    await running.exchange(POST.replace(b"Host", b"Connection: close\r\nHost"))
    await asyncio.sleep(0.02)
    lines = [record.getMessage() for record in caplog.records if record.name == "adapters.openai.http1"]
    assert len(lines) == 2
    assert lines[0].startswith("GET /v1/models 200 ")
    assert "id=my-id peer=127.0.0.1" in lines[0]
    assert lines[1].startswith("POST /audio/speech 200 ")
    assert "secret" not in caplog.text


async def test_the_log_says_who_left(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    running.service.hang_after = 0
    async with running.connection() as (_, writer):
        writer.write(POST)
        await running.until(speaking=True)
    await asyncio.sleep(0.05)
    assert "POST /audio/speech 499 " in caplog.text
    assert "ERROR" not in caplog.text
    assert "WARNING" not in caplog.text


async def test_nothing_is_left_behind(running: Running) -> None:
    before = len(asyncio.all_tasks())
    for data in (GET, POST, b"", b"x", b"\r\n\r\n", POST[:-5]) * 5:
        async with running.connection() as (reader, writer):
            writer.write(data)
            if data in (GET, POST):
                await reader.readline()
    await asyncio.sleep(0.05)
    assert len(asyncio.all_tasks()) == before
    assert open_connections(running) == 0
