"""One Wyoming connection: events are read at all times, answers are spoken one after the other.

Reading goes on while an answer is spoken, so that `describe` and `ping` are answered at once and a peer that leaves is
noticed at once. Home Assistant takes a clean end of an unfinished answer for its true end and keeps the stump in its
cache for good; see `_tell` for how a failure is told instead.
"""

import asyncio
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass

from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Describe
from wyoming.ping import Ping, Pong
from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeStop, SynthesizeStopped

from fishs2_daemon.errors import Busy, DeadlineExceeded, Fishs2Error, ProtocolError, ShuttingDown, without_paths
from fishs2_daemon.service import SpeechService
from fishs2_daemon.speech import Pcm, SpeechRequest
from fishs2_daemon.wyoming_server import framing
from fishs2_daemon.wyoming_server.info import info_event
from fishs2_daemon.wyoming_server.requests import TextStream, request_of, text_of

_log = logging.getLogger(__name__)

#: Requests that one peer may send ahead of the answer that is being spoken.
MAX_AHEAD = 8

#: After an error the peer gets this long to read it and leave. Closing on unread input would make the kernel send
#: a reset, and that can throw away what the peer has not read yet.
_LINGER_S = 1.0

#: The header of an event whose payload never comes: clients that do not know `error` fail on it.
_HALF_EVENT = b'{"type":"audio-chunk","payload_length":1}\n'

_WIDTH_BYTES, _CHANNELS = 2, 1

#: `struct linger`: whether closing waits, and for how many seconds; for none, it resets.
_LINGER = struct.Struct("ii")


class _PeerGone(Exception):
    """The peer reads no more; there is nobody to tell."""


@dataclass(frozen=True, slots=True)
class _Exchange:
    request: SpeechRequest
    is_streamed: bool


class Connection:
    """`run` serves the connection to its end and closes it; nothing but cancellation is ever raised out of it."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        service: SpeechService,
        *,
        speaks_after_eof: bool = False,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._service = service
        self._settings = service.settings
        self._speaks_after_eof = speaks_after_eof
        self._exchanges: asyncio.Queue[_Exchange | None] = asyncio.Queue()
        self._open_text: TextStream | None = None
        self._unanswered = 0
        self._unfinished_streams = 0
        self._refusal: Fishs2Error | None = None
        self._is_audio_open = False
        self._is_finishing = False
        self._outcome: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        tasks = [asyncio.create_task(self._guard(work)) for work in (self._read, self._speak_all)]
        try:
            try:
                error = await self._outcome
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            if isinstance(error, _PeerGone):
                self._writer.transport.abort()
                return
            if error is not None:
                self._tell(error)
            await self._close(linger=error is not None)
        except asyncio.CancelledError:
            self._writer.transport.abort()
            raise

    def refuse(self, error: Fishs2Error) -> None:
        """Before `run`: answer whatever the peer asks first with `error`, and close; a silent one hears it soon."""
        self._refusal = error
        asyncio.get_running_loop().call_later(_LINGER_S, self._end, error)

    def finish(self) -> None:
        """Let running answers end, then close."""
        self._is_finishing = True
        if not self._unanswered:
            self._end(None)

    def abort(self) -> None:
        """Stop now; an answer that is being spoken fails."""
        self._end(ShuttingDown("the daemon is shutting down") if self._unanswered else None)

    async def _guard(self, work: Callable[[], Awaitable[None]]) -> None:
        """Whatever ends reading or speaking ends the connection."""
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - an edge: no peer and no bug may take the server down
            self._end(error)

    def _end(self, outcome: BaseException | None) -> None:
        if not self._outcome.done():
            self._outcome.set_result(outcome)

    async def _read(self) -> None:
        while first := await self._first_byte():
            event = await framing.read_event(self._reader, first, self._settings.event_timeout_s)
            if event is None:
                break
            await self._handle(event)
        if self._speaks_after_eof:
            self._exchanges.put_nowait(None)
        else:
            self._end(None)

    async def _first_byte(self) -> bytes:
        """Silence counts only while the peer is not listening to an answer."""
        while True:
            try:
                async with asyncio.timeout(self._settings.idle_timeout_s):
                    return await self._reader.read(1)
            except ConnectionError:
                return b""
            except TimeoutError:
                if not self._unanswered:
                    raise DeadlineExceeded(f"no event came for {self._settings.idle_timeout_s:.0f} s") from None

    async def _handle(self, event: Event) -> None:
        kind = event.type
        if self._refusal is not None:
            # What was asked decides how it is told: `describe` has to end cleanly, a stream must not.
            self._unfinished_streams += SynthesizeStart.is_type(kind)
            raise self._refusal
        if Describe.is_type(kind):
            await self._service.refresh()
            await self._write(info_event(self._service))
        elif Ping.is_type(kind):
            text = event.data.get("text")
            await self._write(Pong(text if isinstance(text, str) else None).event())
        elif Synthesize.is_type(kind):
            # Within a stream, Home Assistant repeats the whole text for servers that do not know streams.
            if self._open_text is None:
                self._begin(request_of(event, text_of(event)), is_streamed=False)
        elif SynthesizeStart.is_type(kind):
            if self._open_text is not None:
                raise ProtocolError("synthesize-start came before the synthesize-stop of the last one")
            self._unfinished_streams += 1
            self._reset_at_death(is_on=True)
            self._open_text = TextStream(self._settings.max_text_chars)
            self._begin(request_of(event, self._open_text), is_streamed=True)
        elif SynthesizeChunk.is_type(kind):
            self._stream_of(event).add(text_of(event))
        elif SynthesizeStop.is_type(kind):
            self._stream_of(event).close()
            self._open_text = None
        else:
            _log.debug("event %r ignored", kind[:64])

    def _stream_of(self, event: Event) -> TextStream:
        if self._open_text is None:
            raise ProtocolError(f"{event.type} came without a synthesize-start")
        return self._open_text

    def _begin(self, request: SpeechRequest, *, is_streamed: bool) -> None:
        if self._unanswered > MAX_AHEAD:
            raise Busy(f"more than {MAX_AHEAD} requests wait on this connection; read the answers first")
        self._unanswered += 1
        self._exchanges.put_nowait(_Exchange(request, is_streamed))

    async def _speak_all(self) -> None:
        while exchange := await self._exchanges.get():
            await self._speak(exchange)
            self._unanswered -= 1
            if self._is_finishing and not self._unanswered:
                break
        self._end(None)

    async def _speak(self, exchange: _Exchange) -> None:
        async with aclosing(self._service.speak(exchange.request)) as blocks:
            async for block in blocks:
                await self._write_audio(block)
        await self._write(AudioStop().event())
        self._is_audio_open = False
        if exchange.is_streamed:
            await self._write(SynthesizeStopped().event())
            self._unfinished_streams -= 1
        self._reset_at_death(is_on=self._unfinished_streams > 0)

    async def _write_audio(self, block: Pcm) -> None:
        chunk = AudioChunk(block.sample_rate, _WIDTH_BYTES, _CHANNELS, block.samples).event()
        if not self._is_audio_open:
            self._is_audio_open = True
            self._reset_at_death(is_on=True)
            start = AudioStart(block.sample_rate, _WIDTH_BYTES, _CHANNELS).event()
            await self._write(start, chunk)
        else:
            await self._write(chunk)

    def _reset_at_death(self, *, is_on: bool) -> None:
        """A daemon that is killed in the middle of an answer, or of a stream before its first sound, would end its
        connections as if that were whole: the kernel is told to reset them."""
        connection = self._writer.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            with suppress(OSError):  # the peer was quicker
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.pack(is_on, 0))

    async def _write(self, *events: Event) -> None:
        self._writer.write(b"".join(map(framing.encode, events)))
        try:
            async with asyncio.timeout(self._settings.write_timeout_s):
                await self._writer.drain()
        except (TimeoutError, ConnectionError) as error:
            raise _PeerGone from error

    def _tell(self, error: BaseException) -> None:
        """`error`, and in the middle of an answer or a stream, half an event.

        Home Assistant from 2026.9 on raises on `error`. Older ones ignore it, but fail on the half event: neither
        keeps the stump of an answer. In a stream they would keep even an answer without any audio, and play it
        until their cache is cleared. Before the audio of a plain `synthesize`, the end alone says it better.
        """
        if isinstance(error, Fishs2Error):
            text, code = str(error), error.code
        else:
            _log.error("a Wyoming connection failed", exc_info=error)
            text, code = "internal error; the daemon's log says more", Fishs2Error.code
        _log.info("a Wyoming request failed: %s (%s)", text, code)
        self._reset_at_death(is_on=False)
        self._writer.write(framing.encode(Error(text=without_paths(text), code=code).event()))
        if self._is_audio_open or self._unfinished_streams:
            self._writer.write(_HALF_EVENT)

    async def _close(self, *, linger: bool) -> None:
        with suppress(OSError, RuntimeError, TimeoutError):
            async with asyncio.timeout(self._settings.write_timeout_s):
                await self._writer.drain()
            if linger and self._writer.can_write_eof():
                self._writer.write_eof()
                async with asyncio.timeout(_LINGER_S):
                    while await self._reader.read(framing.MAX_HEADER_BYTES):
                        pass
        self._writer.close()
        try:
            async with asyncio.timeout(_LINGER_S):
                await self._writer.wait_closed()
        except TimeoutError:
            self._writer.transport.abort()
        except OSError:
            pass  # the peer was quicker
