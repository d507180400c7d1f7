"""What the tests of Fish Audio's APIs share."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import av
import msgpack
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.adapters.openai.harness import Answer, Running


def decoded_s(audio: bytes) -> tuple[str, int, float]:
    """Codec, sample rate and length, as another program decodes them."""
    with av.open(io.BytesIO(audio)) as container:
        stream = container.streams.audio[0]
        samples = sum(frame.samples for frame in container.decode(stream))
        return stream.codec_context.name, stream.rate, samples / stream.rate


def error_of(answer: Answer) -> str:
    """The message of an error of the hosted service, checked for its shape."""
    assert answer.status >= 400
    assert answer.headers["content-type"] == "application/json"
    body = json.loads(answer.body)
    assert set(body) == {"status", "message"}
    assert body["status"] == answer.status
    assert isinstance(body["message"], str)
    assert body["message"]
    return str(body["message"])


async def post(running: Running, path: str, body: Any, kind: str = "msgpack", **headers: str) -> Answer:
    data = body if isinstance(body, bytes) else msgpack.packb(body) if kind == "msgpack" else json.dumps(body).encode()
    return await running.request("POST", path, data, {"Content-Type": f"application/{kind}", **headers})


def multipart(*parts: tuple[str, str | bytes]) -> tuple[bytes, dict[str, str]]:
    """A form's body and headers; bytes are files, named as Fish Audio's client names them."""
    pieces = []
    for name, value in parts:
        is_file = isinstance(value, bytes)
        head = f'Content-Disposition: form-data; name="{name}"' + ('; filename="upload"' if is_file else "")
        pieces.append(b"--frontier\r\n" + head.encode() + b"\r\n\r\n")
        pieces.append((value if isinstance(value, bytes) else value.encode()) + b"\r\n")
    return b"".join(pieces) + b"--frontier--\r\n", {"Content-Type": "multipart/form-data; boundary=frontier"}


class Peer:
    """A client of the live protocol."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.audio = bytearray()
        self.events = 0

    async def say(self, event: str, **fields: Any) -> None:
        await self.connection.send(msgpack.packb({"event": event, **fields}))

    async def start(self, **request: Any) -> None:
        await self.say("start", request={"text": "", "format": "pcm", **request})

    async def event(self) -> dict[str, Any]:
        event: dict[str, Any] = msgpack.unpackb(await asyncio.wait_for(self.connection.recv(), 5))
        if event["event"] == "audio":
            self.audio += event["audio"]
            self.events += 1
        return event

    async def finish(self) -> dict[str, Any]:
        """The last event, behind which the socket is closed."""
        while (event := await self.event())["event"] != "finish":
            assert set(event) == {"event", "audio"}
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(self.connection.recv(), 5)
        return event

    async def error(self) -> str:
        event = await self.finish()
        assert event["reason"] == "error"
        return str(event["message"])

    @property
    def audio_s(self) -> float:
        return len(self.audio) / (2 * 44100)


@asynccontextmanager
async def peer_of(running: Running, **options: Any) -> AsyncIterator[Peer]:
    url = f"ws://127.0.0.1:{running.port}/v1/tts/live"
    async with connect(url, **options) as connection:
        yield Peer(connection)
