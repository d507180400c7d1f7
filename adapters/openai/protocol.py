"""A connection: who gets one, how long it may take, how it ends."""

# Sanic leaves these methods without types.
# mypy: disable-error-code="no-untyped-call"

import asyncio
import json
import socket
import struct
from collections.abc import Callable
from typing import Any

from sanic.exceptions import RequestCancelled
from sanic.headers import format_http1_response
from sanic.http import Stage
from sanic.server import HttpProtocol

from adapters.openai.context import DoorContext
from adapters.openai.errors import HttpError
from adapters.openai.http1 import DoorHttp
from adapters.openai.identity import new_id
from fishs2_daemon.errors import ShuttingDown
from fishs2_daemon.peers import is_allowed
from fishs2_daemon.settings import ENV_PREFIX, Settings

#: A connection without a request is closed after this; clients keep theirs for 5 (httpx) to 60 s (curl, aiohttp).
IDLE_TIMEOUT_S = 75.0

#: After an error, what the peer still sends is read and dropped until it pauses this long, since a reset would overtake
#: the answer; and no longer than the second, in which a gigabyte comes over a home's network.
LINGER_S = 1.0
LINGER_MOST_S = 10.0

#: Refused connections that may linger at once; further ones are dropped without a word.
MAX_REFUSED = 64

_SLICE_BYTES = 65536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class DoorProtocol(HttpProtocol):
    """Sanic's HTTP/1 connection with total deadlines in place of its own, which every byte resets."""

    HTTP_CLASS = DoorHttp
    __slots__ = ("_alarm", "_began", "_failed", "_lingering", "_lingering_ends", "_refused", "context", "peer")

    transport: Any

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.context: DoorContext = self.app.ctx
        self._alarm: asyncio.TimerHandle | None = None
        self._began = 0.0
        self._failed = False
        self._lingering = False
        self._lingering_ends = 0.0
        self._refused = False
        self.peer = ""

    # Called by DoorHttp

    def wait_for_request(self) -> None:
        self._failed = False
        if not self.context.draining:
            self._alarm_in(IDLE_TIMEOUT_S, self.close)
        elif self._began:
            self.close()
        else:
            self._alarm_in(LINGER_S, self.close)

    def request_began(self) -> None:
        self._began = self.loop.time()
        self._alarm_in(self._settings.header_timeout_s, self._header_late)

    def header_complete(self, body_timeout_s: float) -> None:
        left_s = self._began + body_timeout_s - self.loop.time()
        self._alarm_in(max(0.0, left_s), lambda: self._body_late(body_timeout_s))
        self.transport.resume_reading()

    def body_complete(self) -> None:
        # Sanic leaves a transport paused that brought a large body at once, and would not notice the peer leave.
        self.transport.resume_reading()

    def answered(self, status: int) -> None:
        self._failed = status >= 400

    async def send(self, data: bytes) -> None:
        """Write with back-pressure; a peer that does not take its share in `write_timeout_s` is dropped."""
        view = memoryview(data)
        for start in range(0, len(view), _SLICE_BYTES):
            await self._writable()
            self.transport.write(view[start : start + _SLICE_BYTES])

    # Called by the door and by handlers

    @property
    def task(self) -> asyncio.Task[None] | None:
        """What runs the connection's requests."""
        return self._task

    def break_off(self) -> None:
        """Cut the connection so that the peer cannot take what it got for the whole."""
        if self.transport is None:
            return
        request = self.http.request if self.http and self.http.stage is Stage.RESPONSE else None
        if request is not None and request.version == "1.0":
            # Such a body ends with the connection, so only a reset tells a cut from an end.
            raw = self.transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()

    def give_up(self) -> None:
        """The daemon ends: who has no answer yet gets a word on it, the others are cut."""
        if self.http is not None and self.http.stage in (Stage.REQUEST, Stage.HANDLER):
            self._fail(ShuttingDown("The daemon is shutting down."))
        else:
            self.break_off()

    # asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        name = transport.get_extra_info("peername")
        self.peer = str(name[0]) if isinstance(name, tuple) and name else "local"
        if not is_allowed(name, self._settings.allowed_networks, transport.get_extra_info("sockname")):
            message = f"This server does not answer {self.peer}; see {ENV_PREFIX}ALLOWED_NETWORKS."
            self._refuse(transport, HttpError(403, "address_not_allowed", message))
        elif len(self.connections) >= self._settings.http_max_connections:
            busy = HttpError(503, "too_many_connections", "Too many connections.", headers={"Retry-After": "1"})
            self._refuse(transport, busy)
        else:
            super().connection_made(transport)
            self.context.empty.clear()
            self.context.service.metrics.connections.labels(door="http").inc()

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            self._alarm_in(min(LINGER_S, max(0.0, self._lingering_ends - self.loop.time())), self.transport.abort)
            return
        super().data_received(data)
        # While an answer runs nobody reads further requests, and the transport must not stay paused, see above.
        if self.http and not self.http.request_body and len(self.recv_buffer) >= self.app.config.REQUEST_BUFFER_SIZE:
            self.break_off()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        if self._refused:
            self.context.refused.discard(self.transport)
            return
        super().connection_lost(exc)
        self.context.service.metrics.connections.labels(door="http").dec()
        if not self.connections:
            self.context.empty.set()

    def close(self, timeout: float | None = None) -> None:
        self._disarm()
        if self._failed and self.transport is not None and not self.transport.is_closing():
            self._linger(LINGER_MOST_S)
        else:
            super().close(self._settings.write_timeout_s if timeout is None else timeout)

    def check_timeouts(self) -> None:
        """Sanic's deadlines; the alarms of this class stand in for them."""

    # Private

    @property
    def _settings(self) -> Settings:
        return self.context.settings

    async def _writable(self) -> None:
        if not self._can_write.is_set():
            try:
                async with asyncio.timeout(self._settings.write_timeout_s):
                    await self._can_write.wait()
            except TimeoutError:
                self.break_off()
        if self.transport is None or self.transport.is_closing():
            raise RequestCancelled

    def _refuse(self, transport: Any, error: HttpError) -> None:
        self._refused = True
        self.transport = transport
        if len(self.context.refused) >= MAX_REFUSED:
            transport.abort()
            return
        self.context.refused.add(transport)
        response, body = error.response(), json.dumps(error.body()).encode()
        response.headers.update({"connection": "close", "content-length": str(len(body))})
        response.headers[self._settings.request_id_header] = new_id()
        transport.write(format_http1_response(error.status, response.processed_headers) + body)
        self._linger(LINGER_S)

    def _linger(self, most_s: float) -> None:
        self._lingering = True
        self._lingering_ends = self.loop.time() + most_s
        self.transport.resume_reading()
        self.transport.write_eof()
        self._alarm_in(LINGER_S, self.transport.abort)

    def _alarm_in(self, delay_s: float, ring: Callable[[], object]) -> None:
        self._disarm()
        self._alarm = self.loop.call_later(delay_s, ring)

    def _disarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _header_late(self) -> None:
        self._fail(_late("header", self._settings.header_timeout_s))

    def _body_late(self, timeout_s: float) -> None:
        if self.http is None or not self.http.request_body:
            return
        if self.http.stage is Stage.HANDLER:
            self._fail(_late("body", timeout_s))
        else:
            self.transport.abort()

    def _fail(self, error: Exception) -> None:
        """End the request under way with `error` as its answer."""
        if self.http is not None and self._task is not None:
            self.http.exception = error
            self._task.cancel()


def _late(part: str, timeout_s: float) -> HttpError:
    return HttpError(408, "request_timeout", f"The request's {part} was not complete within {timeout_s:g} s.")
