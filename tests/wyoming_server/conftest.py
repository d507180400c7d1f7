import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from wyoming.event import Event, async_read_event, async_write_event

from fishs2_daemon.sockets import listen_tcp
from fishs2_daemon.wyoming_server.server import WyomingServer
from tests.conftest import Speech

#: Long enough that an answer is still running when its listener has stopped reading.
LONG_TEXT = "This sentence is one of very many that follow each other. " * 1500

WAIT_S = 15


@dataclass
class Client:
    """A peer that reads and writes events, or bytes."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, kind: str, **data: Any) -> None:
        await async_write_event(Event(kind, data), self.writer)

    async def receive(self) -> Event | None:
        return await asyncio.wait_for(async_read_event(self.reader), WAIT_S)

    async def answer(self, last: str = "audio-stop") -> "Answer":
        """Everything up to the event `last`, or to the end of the connection."""
        answer = Answer()
        while True:
            try:
                event = await self.receive()
            except asyncio.IncompleteReadError:
                answer.is_broken_off = True
                return answer
            if event is None:
                answer.is_closed = True
                return answer
            answer.kinds.append(event.type)
            if event.type == "audio-start":
                answer.formats.append(event.data)
            elif event.type == "audio-chunk":
                answer.chunks.append(event.payload or b"")
            elif event.type == "error":
                answer.error = event.data
            elif event.type == last:
                return answer

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


@dataclass
class Answer:
    """`is_closed`: the peer saw a clean end. `is_broken_off`: it ended within an event."""

    kinds: list[str] = field(default_factory=list)
    formats: list[dict[str, Any]] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)
    error: dict[str, Any] | None = None
    is_closed: bool = False
    is_broken_off: bool = False

    @property
    def audio(self) -> bytes:
        return b"".join(self.chunks)


@dataclass
class Door:
    """A running Wyoming door on loopback."""

    speech: Speech
    server: WyomingServer
    port: int
    clients: list[Client] = field(default_factory=list)

    async def connect(self, **options: Any) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, **options)
        self.clients.append(Client(reader, writer))
        return self.clients[-1]

    async def idle(self) -> None:
        """Until nothing runs any more."""
        async with asyncio.timeout(WAIT_S):
            while self.speech.service.running or self.speech.service.waiting:
                await asyncio.sleep(0.01)


@pytest.fixture
async def door(speech: Speech) -> AsyncIterator[Door]:
    server = WyomingServer(speech.service)
    sockets = listen_tcp("127.0.0.1", 0)
    await server.start(sockets)
    door = Door(speech, server, sockets[0].getsockname()[1])
    yield door
    for client in door.clients:
        await client.close()
    server.stop_accepting()
    await server.drain(0)
