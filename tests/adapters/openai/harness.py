"""What the tests of the HTTP door share: a service with a scripted answer, a door that listens, raw requests."""

import asyncio
import json
import math
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from adapters.openai.routes import Route
from adapters.openai.server import HttpDoor
from fishs2_daemon.catalogue import Casting, VoiceCatalogue
from fishs2_daemon.metrics import Metrics
from fishs2_daemon.settings import Settings
from fishs2_daemon.speech import EngineInfo, EngineState, Pcm, SpeechRequest, Voice
from fishs2_daemon.voices.store import VoiceStore

RATE = 22050
BLOCK_SAMPLES = 441


class FakeService:
    """SpeechService's surface with a scripted answer: `blocks` of 20 ms, then the end or `error`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.state = EngineState.READY
        self.detail = ""
        self.instance = "this one"
        voices = (Voice("anna", "Anna", ("en-GB",)), Voice("echo", "A stored voice with OpenAI's name", ("en",)))
        self.engine: EngineInfo | None = EngineInfo("fake", RATE, 2, "anna", voices)
        self.running = 0
        self.waiting = 0
        self.asked: list[SpeechRequest] = []
        self.closed = 0
        self.blocks = 5
        self.block_samples = BLOCK_SAMPLES
        self.error: Exception | None = None
        self.fail_after = 0
        self.delay_s = 0.0
        self.hang_after: int | None = None
        self.gate = asyncio.Event()
        self.given = 0
        self.catalogue = VoiceCatalogue(settings, VoiceStore(settings.voices_dir))

    def voices(self) -> tuple[Voice, ...]:
        return self.catalogue.voices(self.engine)

    async def refresh(self) -> None:
        await self.catalogue.refresh()

    async def _cast(self, request: SpeechRequest) -> Casting:
        """An engine that clones wants voices that exist; otherwise whoever is asked for speaks."""
        if self.engine and self.engine.clones:
            return await self.catalogue.cast(request, self.engine)
        name = request.voice or "anna"
        return Casting(self.engine.name if self.engine else "fake", name, name)

    async def speak(
        self, request: SpeechRequest, on_cast: Callable[[Casting], None] = lambda casting: None
    ) -> AsyncGenerator[Pcm, None]:
        on_cast(await self._cast(request))
        self.asked.append(request)
        self.running += 1
        try:
            for number in range(self.blocks):
                if self.error and number == self.fail_after:
                    raise self.error
                if number == self.hang_after:
                    await self.gate.wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                self.given = number + 1
                yield Pcm(self.block(number), RATE)
        finally:
            self.running -= 1
            self.closed += 1

    def block(self, number: int) -> bytes:
        start = number * self.block_samples
        wave = (round(9000 * math.sin(index / 9)) for index in range(start, start + self.block_samples))
        return struct.pack(f"<{self.block_samples}h", *wave)

    @property
    def whole(self) -> bytes:
        return b"".join(self.block(number) for number in range(self.blocks))


@dataclass
class Running:
    """A door that listens."""

    door: HttpDoor
    service: Any
    settings: Settings
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def until(self, *, speaking: bool, timeout_s: float = 2) -> None:
        """Wait until the service speaks, or speaks no more."""
        async with asyncio.timeout(timeout_s):
            while bool(self.service.running) != speaking:
                await asyncio.sleep(0.002)

    @asynccontextmanager
    async def connection(
        self, receive_bytes: int | None = None
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        sock = socket.socket()
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        except OSError:
            sock.close()
            raise
        reader, writer = await asyncio.open_connection(sock=sock, limit=receive_bytes or 65536)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()
            await asyncio.sleep(0)

    async def exchange(self, data: bytes, timeout_s: float = 5) -> bytes:
        """What comes back for `data` until the server closes."""
        async with self.connection() as (reader, writer), asyncio.timeout(timeout_s):
            writer.write(data)
            return await reader.read()

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> "Answer":
        lines = {"Host": f"127.0.0.1:{self.port}", "Connection": "close", **(headers or {})}
        if body:
            lines.setdefault("Content-Length", str(len(body)))
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return Answer.parse(await self.exchange(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body))


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    raw: bytes

    @classmethod
    def parse(cls, raw: bytes) -> "Answer":
        head, _, body = raw.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        assert len(headers) == len(lines) - 1, f"a header twice in {lines}"
        return cls(int(lines[0].split(" ")[1]), headers, body, raw)

    @property
    def error(self) -> dict[str, Any]:
        """The OpenAI error object, checked for its shape."""
        assert self.headers["content-type"] == "application/json"
        assert self.headers["x-request-id"]
        body = json.loads(self.body)
        error = body["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == ("invalid_request_error" if self.status < 500 else "server_error")
        return dict(error)


Start = Callable[..., Awaitable[Running]]


@asynccontextmanager
async def doors_with(routes: Sequence[Route] = ()) -> AsyncIterator[Start]:
    """Starts doors with these routes beside OpenAI's, over a fake service or over `service`; keyword arguments are
    settings. They are closed at the end."""
    doors: list[Running] = []

    async def begin(service: Any = None, **values: Any) -> Running:
        settings = service.settings if service else Settings(_env_file=None, **values)
        service = service or FakeService(settings)
        door = HttpDoor(service, settings, routes)
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        sock.setblocking(False)
        await door.start(sock)
        doors.append(Running(door, service, settings, sock.getsockname()[1]))
        return doors[-1]

    yield begin
    for running in doors:
        await running.door.close()
        assert running.service.running == 0
