"""A speech server that may break every rule, on a real socket."""

import asyncio
import base64
import json
import math
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from fishs2_daemon.audio import wav

RATE = 22050
GREETING = "Hello."


def tone(seconds: float = 0.2, rate: int = RATE, pitch: int = 9) -> bytes:
    return struct.pack(
        f"<{round(seconds * rate)}h", *(round(8000 * math.sin(at / pitch)) for at in range(round(seconds * rate)))
    )


TONE = tone()


def wav_of(samples: bytes, rate: int = RATE, *, open_length: bool = True) -> bytes:
    return wav.header(rate, None if open_length else len(samples)) + samples


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def fields(self) -> dict[str, Any]:
        return dict(json.loads(self.body))


class Exchange:
    """One request, and what is written for it."""

    def __init__(self, server: "SpeechServer", request: Request, writer: asyncio.StreamWriter) -> None:
        self.server, self.request, self.writer = server, request, writer

    async def head(self, status: int = 200, kind: str = "audio/wav", **headers: str) -> None:
        lines = {"content-type": kind, "transfer-encoding": "chunked"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        await self.raw(f"HTTP/1.1 {status} Whatever\r\n{text}\r\n".encode())

    async def chunk(self, data: bytes) -> None:
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.raw(b"0\r\n\r\n")

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def whole(self, status: int, body: bytes, kind: str = "application/json", **headers: str) -> None:
        lines = {"content-type": kind, "content-length": str(len(body))} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        await self.raw(f"HTTP/1.1 {status} Whatever\r\n{text}\r\n".encode() + body)

    async def json(self, body: Any, status: int = 200, **headers: str) -> None:
        await self.whole(status, json.dumps(body).encode(), **headers)

    async def error(self, status: int, message: str, **headers: str) -> None:
        await self.json({"error": {"message": message, "type": "x", "param": None, "code": "x"}}, status, **headers)

    async def speech(self, samples: bytes = TONE, rate: int = RATE) -> None:
        await self.head()
        await self.chunk(wav_of(samples, rate))
        await self.end()

    async def left(self) -> None:
        """Until the client is gone."""
        await self.server.gone(self.writer)


Answer = Callable[[Exchange], Awaitable[None]]


async def speak(exchange: Exchange) -> None:
    await exchange.speech()


async def greeted(exchange: Exchange) -> None:
    """What every server is asked first."""
    await exchange.speech()


@dataclass
class SpeechServer:
    """`answer` speaks the texts that are no greeting. `kept` are the requests for them."""

    answer: Answer = speak
    greeting: Answer = greeted
    health: int = 200
    owner: str = "fishs2-daemon"
    voices: Any = None
    port: int = 0
    kept: list[Request] = field(default_factory=list)
    greetings: list[Request] = field(default_factory=list)
    health_checks: int = 0
    left: int = 0
    connections: int = 0
    writers: set[asyncio.StreamWriter] = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _readers: dict[asyncio.StreamWriter, asyncio.StreamReader] = field(default_factory=dict)
    _server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def texts(self) -> list[str]:
        return [request.fields["input"] for request in self.kept]

    async def start(self) -> None:
        """On the port of before, where there was one."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Nobody listens any more, and every connection breaks."""
        if self._server:
            self._server.close()
            self._server = None
        for writer in list(self.writers):
            writer.transport.abort()
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def gone(self, writer: asyncio.StreamWriter) -> None:
        assert await self._readers[writer].read() == b""
        self.left += 1

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self.tasks.add(task)
        self.connections += 1
        self.writers.add(writer)
        self._readers[writer] = reader
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while True:
                    await self._dispatch(Exchange(self, await _request(reader), writer))
        finally:
            writer.transport.abort()
            self.writers.discard(writer)
            self.tasks.discard(task)

    async def _dispatch(self, exchange: Exchange) -> None:
        request = exchange.request
        if request.path.endswith("/health"):
            self.health_checks += 1
            await exchange.json({"status": "ok"}, self.health)
        elif request.path == "/v1/models":
            await exchange.json({"object": "list", "data": [{"id": "m", "object": "model", "owned_by": self.owner}]})
        elif request.path == "/v1/audio/voices":
            await (exchange.json(self.voices) if self.voices is not None else exchange.json({}, 404))
        elif request.path != "/v1/audio/speech":
            await exchange.json({"detail": "Not Found"}, 404)
        elif request.fields["input"] == GREETING:
            self.greetings.append(request)
            await self.greeting(exchange)
        else:
            self.kept.append(request)
            await self.answer(exchange)


async def _request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, body)


@asynccontextmanager
async def serving(*servers: SpeechServer) -> AsyncIterator[None]:
    try:
        for server in servers:
            await server.start()
        yield
    finally:
        for server in servers:
            await server.stop()


def delta(audio: bytes) -> bytes:
    event = {"type": "speech.audio.delta", "audio": base64.b64encode(audio).decode()}
    return b"data: %b\n\n" % json.dumps(event).encode()


DONE = b'data: {"type": "speech.audio.done", "usage": {"total_tokens": 25}}\n\n'


def chunk_event(audio: bytes, index: int, *, last: bool = False, rate: int = RATE) -> bytes:
    """As SGLang-Omni's first releases sent it."""
    event = {
        "id": "speech-1",
        "object": "audio.speech.chunk",
        "index": index,
        "audio": {"data": base64.b64encode(audio).decode(), "format": "wav", "sample_rate": rate} if audio else None,
        "finish_reason": "stop" if last else None,
    }
    return b"data: %b\n\n" % json.dumps(event).encode()


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
