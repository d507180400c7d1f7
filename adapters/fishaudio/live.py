"""`/v1/tts/live`: text in and speech out at the same time, in MessagePack over a WebSocket.

client: start, text*, flush*, stop          server: audio*, finish
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from sanic import Request

from adapters.fishaudio import websocket
from adapters.fishaudio.bodies import validated
from adapters.fishaudio.errors import message_of
from adapters.fishaudio.packing import packed, unpacked
from adapters.fishaudio.schemas import TtsBody
from adapters.fishaudio.spoken import spoken
from adapters.fishaudio.websocket import WebSocket
from adapters.openai.context import DoorContext, context_of, max_text_body_bytes
from adapters.openai.errors import HttpError, as_http_error
from adapters.openai.identity import request_id
from adapters.openai.speech import max_body_bytes
from fishs2_daemon.audio.chain import AudioChain, Output
from fishs2_daemon.errors import EngineError, Fishs2Error, TextTooLong
from fishs2_daemon.references import Recording
from fishs2_daemon.speech import Flush, Pcm, Priority

_log = logging.getLogger(__name__)

#: A message is parsed on the loop up to this size; a larger one holds nobody else up.
_SMALL_MESSAGE_BYTES = 64 * 1024

#: Of one audio event, so that the message with it stays below what is sent at once.
_AUDIO_BYTES = 32 * 1024

_FLUSH = Flush()

_NORMAL_CLOSURE, _POLICY_VIOLATION, _INTERNAL_ERROR = 1000, 1008, 1011


async def live(request: Request) -> None:
    """The last event is `finish`: with reason stop, or error and a `message`. Then the socket is closed.

    `flush` ends a phrase. A `start` takes at most `body_timeout_s`, a pause between texts `text_timeout_s`, and all
    text together `max_text_chars`.
    """
    context = context_of(request)
    socket = await websocket.accept(request, max_body_bytes(context.settings))
    finish: dict[str, Any] = {"event": "finish", "reason": "stop"}
    code = _NORMAL_CLOSURE
    try:
        body, recordings = await _start(socket, context)
        await _Conversation(socket, context, body.text).run(body, recordings)
    except Exception as error:  # noqa: BLE001 - the edge: the error goes to the client as the last event
        unexpected = None if isinstance(error, Fishs2Error | HttpError) else error
        told = as_http_error(error)
        _log.warning("id=%s live speech failed, %s: %s", request_id(request), told.code, error, exc_info=unexpected)
        finish |= {"reason": "error", "status": told.status, "message": message_of(told)}
        code = _POLICY_VIOLATION if told.status < 500 else _INTERNAL_ERROR
    await socket.send(packed(finish))
    await socket.close(code)


async def _start(socket: WebSocket, context: DoorContext) -> tuple[TtsBody, list[Recording]]:
    timeout_s = context.settings.body_timeout_s
    try:
        async with asyncio.timeout(timeout_s), socket.message() as message:
            if len(message) > _SMALL_MESSAGE_BYTES:
                body = await asyncio.to_thread(_started, message)
            else:
                body = _started(message)
            del message
            return body, body.taken_recordings()
    except TimeoutError:
        raise HttpError(408, "request_timeout", f"No start came within {timeout_s:g} s.") from None


def _started(message: bytes) -> TtsBody:
    event = unpacked(message)
    if not isinstance(event, dict) or event.get("event") != "start":
        raise HttpError(422, "bad_message", 'The first message is {"event": "start", "request": {...}}.')
    return validated(TtsBody, event.get("request"))


class _Conversation:
    """One text and its speech."""

    def __init__(self, socket: WebSocket, context: DoorContext, text: str) -> None:
        self._socket = socket
        self._context = context
        self._text = _Text(context.settings.max_text_chars)
        self._text.add(text)

    async def run(self, body: TtsBody, recordings: list[Recording]) -> None:
        """Raises what went wrong with either."""
        output = body.output()
        self._socket.begin(max_text_body_bytes(self._context.settings))
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._read())
                await self._speak(body, recordings, output)
                reading.cancel()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _read(self) -> None:
        while True:
            async with self._socket.message() as message:
                event = unpacked(message)
            match event:
                case {"event": "text", "text": str(text)}:
                    self._text.add(text)
                case {"event": "flush"}:
                    self._text.flush()
                case {"event": "stop"}:
                    self._text.end()
                case {"event": str(name)} if name not in ("start", "text"):
                    pass  # of a newer client
                case _:
                    raise HttpError(422, "bad_message", "After start come text (with a text), flush and stop.")

    async def _speak(self, body: TtsBody, recordings: list[Recording], output: Output) -> None:
        async with (
            spoken(self._context, body, recordings, self._text, Priority.CONVERSATION) as asked,
            aclosing(self._context.service.speak(asked)) as blocks,
        ):
            first = await anext(blocks)
            # The first chain loads PyAV, for which nobody else should wait.
            chain = await asyncio.to_thread(AudioChain, first.sample_rate, output)
            await self._send(chain.feed(first.samples))
            async for block in blocks:
                await self._send(chain.feed(_at(first.sample_rate, block)))
            await self._send(chain.flush())

    async def _send(self, audio: bytes) -> None:
        for start in range(0, len(audio), _AUDIO_BYTES):
            await self._socket.send(packed({"event": "audio", "audio": audio[start : start + _AUDIO_BYTES]}))


class _Text:
    """What came and was not read yet."""

    def __init__(self, max_chars: int) -> None:
        self._max_chars = max_chars
        self._left = max_chars
        self._chunks: deque[str] = deque()
        self._has_ended = False
        self._changed = asyncio.Event()

    def add(self, text: str) -> None:
        """Raises `TextTooLong`. What comes behind the end is dropped."""
        self._left -= len(text)
        if self._left < 0:
            raise TextTooLong(f"the text is longer than {self._max_chars} characters", param="text")
        if text:
            self._put(text)

    def flush(self) -> None:
        if not self._chunks or self._chunks[-1] is not _FLUSH:
            self._put(_FLUSH)

    def end(self) -> None:
        self._has_ended = True
        self._changed.set()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        while not self._chunks:
            if self._has_ended:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._chunks.popleft()

    def _put(self, chunk: str) -> None:
        if not self._has_ended:
            self._chunks.append(chunk)
            self._changed.set()


def _at(sample_rate: int, block: Pcm) -> bytes:
    if block.sample_rate != sample_rate:
        raise EngineError("The engine changed its sample rate.")
    return block.samples
