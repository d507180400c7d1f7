"""The other end of a Wyoming connection."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from wyoming.event import Event, async_read_event, async_write_event

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
