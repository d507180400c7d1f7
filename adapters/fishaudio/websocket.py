"""A WebSocket (RFC 6455) on a connection of the HTTP door.

    request -> DoorProtocol -> handler -> accept: 101 -> the transport's bytes -> WebSocket
                                                         all else of it        -> DoorProtocol

The frames are read and written by `websockets`' protocol without I/O. Sanic's own WebSockets are not used: they read
without a bound, and take Sanic's connection in the place of the door's.
"""

# Sanic leaves these methods without types.
# mypy: disable-error-code="no-untyped-call"

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import cast

from sanic import HTTPResponse, Request
from sanic.http import Stage
from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Request as Handshake
from websockets.protocol import State
from websockets.server import ServerProtocol

from adapters.openai.context import context_of, max_text_body_bytes
from adapters.openai.errors import HttpError
from adapters.openai.http1 import DoorHttp
from adapters.openai.protocol import DoorProtocol

#: Messages that nobody took yet; with more of them the next ones wait on the wire.
QUEUED_BYTES = 256 * 1024

#: After the closing frame, what the peer still sends is read and dropped this long: a reset would overtake the frame.
CLOSING_S = 2.0

_SWITCHING_PROTOCOLS = 101

#: It tells of every connection that it has closed.
_frames_log = logging.getLogger(f"{__name__}.frames")
_frames_log.setLevel(logging.WARNING)


class WebSocket(asyncio.Protocol):
    """The server's end. Pings are answered, the last one only where the peer does not read.

    When the peer leaves, the handler's task is cancelled, as with any other request.
    """

    def __init__(self, request: Request, frames: ServerProtocol) -> None:
        context = context_of(request)
        self._door = cast(DoorProtocol, request.protocol)
        self._transport = cast(asyncio.Transport, self._door.transport)
        self._stream = cast(DoorHttp, request.stream)
        self._frames = frames
        self._large_messages = context.large_bodies
        self._own_share_bytes = max_text_body_bytes(context.settings)
        self._may_be_large = False
        self._messages: deque[bytes] = deque()
        self._queued_bytes = 0
        self._unfinished_bytes = 0
        self._begun = bytearray()
        self._error: HttpError | None = None
        self._arrived = asyncio.Event()
        self._left = asyncio.Event()
        self._is_writable = True
        self._is_closing = False
        self._pong = b""
        self._closing_frame = b""

    @asynccontextmanager
    async def message(self) -> AsyncIterator[bytes]:
        """The next binary message. While the context lasts, a large one is one of the few that are in memory.

        Raises `HttpError` where the peer breaks the protocol.
        """
        async with AsyncExitStack() as stack:
            while not self._messages:
                if self._error:
                    raise self._error
                if self._is_too_large:
                    await stack.enter_async_context(self._large_messages)
                    self._may_be_large = True
                self._arrived.clear()
                self._transport.resume_reading()
                await self._arrived.wait()
            message = self._messages.popleft()
            self._queued_bytes -= len(message)
            yield message

    def begin(self, max_message_bytes: int) -> None:
        """The first message was taken. An answer runs from now on, which a daemon that ends waits for; the messages to
        come are small."""
        self._stream.stage = Stage.RESPONSE
        self._frames.max_message_size = max_message_bytes
        self._may_be_large = True  # as none is, none has to wait

    async def send(self, message: bytes) -> None:
        """With back-pressure. Less than 64 KiB, which the door writes at once: no pong gets into its midst."""
        await self._door.send(Frame(Opcode.BINARY, message).serialize(mask=False))

    async def close(self, code: int) -> None:
        """The last word, and some time for the peer to hear it."""
        self._is_closing = True
        self._stream.stage = Stage.IDLE
        if not self._closing_frame:
            self._frames.send_close(code)
            self._closing_frame = b"".join(self._frames.data_to_send())
        await self._door.send(self._closing_frame)
        if self._frames.parser_exc is not None:
            self._transport.write_eof()  # its closing frame would not be understood any more
        self._transport.resume_reading()
        try:
            await asyncio.wait_for(self._left.wait(), CLOSING_S)
        except TimeoutError:
            return

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        self._unfinished_bytes += len(data)
        self._frames.receive_data(data)
        for frame in self._frames.events_received():
            self._take(cast(Frame, frame))
        replies = [reply for reply in self._frames.data_to_send() if reply]
        if self._frames.parser_exc is not None:
            self._closing_frame = self._closing_frame or b"".join(replies[-1:])
            self._fail("The WebSocket protocol was broken, or a message was too large.")
        elif replies:
            self._pong = replies[-1]
            self._answer_ping()
        if self._frames.close_rcvd is not None:
            self._left.set()
            self._door.close()
        if not self._is_closing and (self._is_too_large or self._queued_bytes > QUEUED_BYTES):
            self._transport.pause_reading()
        self._arrived.set()

    def eof_received(self) -> None:
        self._left.set()

    def pause_writing(self) -> None:
        self._is_writable = False
        self._door.pause_writing()

    def resume_writing(self) -> None:
        self._is_writable = True
        self._door.resume_writing()
        self._answer_ping()

    def connection_lost(self, exc: Exception | None) -> None:
        self._left.set()
        self._door.connection_lost(exc)

    # Private

    @property
    def _is_too_large(self) -> bool:
        """Whether the message that is coming needs one of the few places for large ones."""
        return self._unfinished_bytes > self._own_share_bytes and not self._may_be_large

    def _take(self, frame: Frame) -> None:
        self._unfinished_bytes = len(self._begun)
        if frame.opcode not in (Opcode.BINARY, Opcode.TEXT, Opcode.CONT) or self._is_closing:
            return
        if frame.opcode is Opcode.TEXT:
            self._fail("Messages are binary, in MessagePack.")
            return
        self._begun += frame.data
        self._unfinished_bytes = len(self._begun)
        if frame.fin:
            message = bytes(self._begun)
            self._begun.clear()
            self._unfinished_bytes = 0
            self._queued_bytes += len(message)
            self._messages.append(message)

    def _fail(self, message: str) -> None:
        self._error = self._error or HttpError(422, "bad_message", message)

    def _answer_ping(self) -> None:
        if self._pong and self._is_writable:
            self._transport.write(self._pong)
            self._pong = b""


class _SwitchingProtocols(HTTPResponse):
    """The head that ends HTTP on a connection."""

    __slots__ = ()

    @property
    def processed_headers(self) -> Iterator[tuple[bytes, bytes]]:
        # The door says of every answer whether the connection goes on as HTTP.
        self.headers["connection"] = "Upgrade"
        return super().processed_headers


async def accept(request: Request, max_message_bytes: int) -> WebSocket:
    """Answers the handshake. What the handler of a GET returns afterwards is None.

    Raises `HttpError`: 400 for a handshake that is wrong, 426 for a request that is none.
    """
    frames = ServerProtocol(state=State.OPEN, max_size=max_message_bytes, logger=_frames_log)
    answer = frames.accept(Handshake(request.path, Headers(request.headers.items())))
    if answer.status_code != _SWITCHING_PROTOCOLS:
        raise HttpError(
            answer.status_code,
            "no_websocket",
            f"This URL is for WebSockets. {str(frames.handshake_exc).capitalize()}.",
            headers={"Upgrade": "websocket"} if answer.status_code == 426 else None,
        )
    headers = {name: answer.headers[name] for name in ("Upgrade", "Sec-WebSocket-Accept")}
    stream, door = cast(DoorHttp, request.stream), cast(DoorProtocol, request.protocol)
    stream.keep_alive = False
    socket = WebSocket(request, frames)
    response = await request.respond(_SwitchingProtocols(status=_SWITCHING_PROTOCOLS, headers=headers))
    await response.send(b"")
    door.transport.set_protocol(socket)
    # The client may have sent its first frames right behind the handshake.
    early = bytes(door.recv_buffer)
    door.recv_buffer.clear()
    if early:
        socket.data_received(early)
    door.transport.resume_reading()
    return socket
