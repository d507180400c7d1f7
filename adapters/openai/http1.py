"""HTTP/1 on one connection: Sanic's parser with stricter headers, our answer heads, one log line a request."""

# Sanic leaves these methods without types.
# mypy: disable-error-code="no-untyped-call"

import logging
import re
from time import perf_counter
from typing import TYPE_CHECKING, Protocol, cast

from sanic.exceptions import BadRequest, PayloadTooLarge, SanicException
from sanic.headers import format_http1_response
from sanic.helpers import has_message_body
from sanic.http import Http, Stage

from adapters.openai.access import cors_headers
from adapters.openai.context import DoorContext, max_text_body_bytes
from adapters.openai.errors import HttpError
from adapters.openai.identity import request_id

if TYPE_CHECKING:
    from adapters.openai.routes import Route

_log = logging.getLogger(__name__)

#: An answered request's body is read to its end up to this size, so that the connection can go on; a larger one ends
#: it.
MAX_LEFTOVER_BYTES = 65536

_NAME = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(_NAME + r" (?:\*|(?:https?://[\x21-\x2e\x30-\x3e\x40-\x7e]+)?/[\x21-\x7e]*) HTTP/1\.[01]")
_HEADER_LINE = re.compile(_NAME + r":[^\x00-\x08\x0a-\x1f\x7f]*")
_HEX = re.compile(r"[0-9A-Fa-f]{1,16}")
_DECIMAL = re.compile(r"[0-9]{1,19}")

#: Asked every second by some supervisors: logged only when something is wrong.
_PROBES = ("/health", "/ready", "/metrics")

#: What the log shows where the client left before the answer, as nginx does.
_CLIENT_LEFT = 499


class Connection(Protocol):
    """What `DoorHttp` tells the protocol that it runs in."""

    context: DoorContext
    peer: str

    def wait_for_request(self) -> None: ...
    def request_began(self) -> None: ...
    def header_complete(self, body_timeout_s: float) -> None: ...
    def body_complete(self) -> None: ...
    def answered(self, status: int) -> None: ...


class DoorHttp(Http):
    """The requests of one connection, one after the other."""

    __slots__ = ("_began", "_connection", "_shown", "_status")

    HEADER_MAX_SIZE = 8192

    def __init__(self, protocol: Connection) -> None:
        super().__init__(protocol)
        self._connection = protocol
        self._began: float | None = None
        self._shown = "-"
        self._status = 0

    async def http1(self) -> None:
        try:
            await super().http1()
        finally:
            self._log_request()

    def init_for_request(self) -> None:
        self._log_request()
        super().init_for_request()
        self._shown = "-"
        self._status = 0
        self._connection.wait_for_request()

    async def http1_request_header(self) -> None:
        self._began = perf_counter()
        self._connection.request_began()
        try:
            await super().http1_request_header()
        except PayloadTooLarge:
            raise HttpError(
                431, "header_too_large", f"The request's header is larger than {self.HEADER_MAX_SIZE} bytes."
            ) from None
        # Sanic lets through what a proxy in front may read in another way: the seed of request smuggling.
        request_line, *header_lines = self.request.head.decode("latin-1").split("\r\n")
        if not _REQUEST_LINE.fullmatch(request_line) or not all(map(_HEADER_LINE.fullmatch, header_lines)):
            self.create_empty_request()
            raise BadRequest("Bad header")
        self._shown = f"{self.request.method} {self.request.path}"
        settings = self._connection.context.settings
        route = self._route()
        self.request.ctx.door_route = route
        self.request_max_size = route.max_body_bytes(settings) if route else max_text_body_bytes(settings)
        if (self.request_bytes or 0) > self.request_max_size:
            raise PayloadTooLarge("Request body too large")
        self._connection.header_complete(max(settings.body_timeout_s, route.body_timeout_s if route else 0.0))

    async def read(self) -> bytes | None:
        data = await super().read()
        if not self.request_body:
            self._connection.body_complete()
        return data

    async def http1_response_header(self, data: bytes, end_stream: bool) -> None:
        """Every answer's head passes here, those to malformed requests too."""
        request, response, context = self.request, self.response, self._connection.context
        headers = response.headers
        headers[context.settings.request_id_header] = request_id(request)
        headers.update(cors_headers(request))
        if not data and response.body:
            data, end_stream = response.body, True
        if context.draining or self.expecting_continue:
            # A body that waits for its 100 may come or not, so nobody knows where the next request begins.
            self.expecting_continue = self.keep_alive = False
        if self.request_body and (self.request_bytes or 0) > MAX_LEFTOVER_BYTES:
            self.keep_alive = False
        if not self.keep_alive:
            # Sanic would wait for the rest of it, with no end; the protocol lingers instead.
            self.request_body = None
        self.response_func = None  # type: ignore[assignment]
        if not has_message_body(response.status):
            data, end_stream = b"", True
        elif end_stream:
            headers["content-length"] = str(len(data))
        elif request.version == "1.1":
            headers["transfer-encoding"] = "chunked"
            data = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            self.response_func = self.http1_response_chunked
        else:
            self.keep_alive = False
            self.response_func = self._response_until_close
        headers["connection"] = "keep-alive" if self.keep_alive else "close"
        head = format_http1_response(response.status, response.processed_headers)
        self._connection.answered(response.status)
        # From the first byte on, an error has no answer of its own any more.
        self.stage = Stage.RESPONSE
        await self._send(head if self.head_only else head + data)
        self._status = response.status
        if end_stream:
            self.stage = Stage.IDLE

    async def _response_until_close(self, data: bytes, end_stream: bool) -> None:
        if data:
            await self._send(data)
        if end_stream:
            self.response_func = None  # type: ignore[assignment]
            self.stage = Stage.IDLE

    def create_empty_request(self) -> None:
        # An unreadable URL would raise once more here, and the client would get no answer at all.
        self.url = None
        super().create_empty_request()

    @staticmethod
    def _safe_int(value: str, base: int = 10) -> int:
        """Digits alone: `int` would also take 0x10, spaces and the digits of other scripts."""
        if not (_HEX if base == 16 else _DECIMAL).fullmatch(value):
            raise ValueError(value)
        return int(value, base)

    def _route(self) -> "Route | None":
        """What the URL leads to; None where that is an error, which Sanic raises when it looks for itself."""
        try:
            found, _, _ = self.request.app.router.get(self.request.path, self.request.method, None)
        except SanicException:
            return None
        return cast("Route", found.ctx.door)

    def _log_request(self) -> None:
        began, self._began = self._began, None
        if began is None or self.request is None:
            return
        ms = 1000 * (perf_counter() - began)
        status = self._status or _CLIENT_LEFT
        cut = "" if self.stage is Stage.IDLE else " broken off"
        peer, name = self._connection.peer, request_id(self.request)
        level = logging.DEBUG if status < 400 and self.request.path in _PROBES else logging.INFO
        _log.log(level, "%s %d %.1f ms id=%s peer=%s%s", self._shown, status, ms, name, peer, cut)
