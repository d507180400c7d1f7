"""Speech as the answer to a request: whole, as a stream of bytes, or as events."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol, cast
from urllib.parse import quote

from sanic import HTTPResponse, Request
from sanic.exceptions import RequestCancelled

from adapters.openai.context import context_of
from adapters.openai.errors import HttpError, as_http_error
from adapters.openai.identity import request_id
from adapters.openai.protocol import DoorProtocol
from fishs2_daemon.audio.chain import AudioChain, Output
from fishs2_daemon.catalogue import Casting
from fishs2_daemon.errors import EngineError, Fishs2Error
from fishs2_daemon.speech import Pcm, SpeechRequest

_log = logging.getLogger(__name__)

#: An answer that is to come whole is held up to this size, six minutes of WAV at 22 kHz; a longer one goes on as a
#: stream.
MAX_WHOLE_BYTES = 16 * 1024 * 1024

#: The engine that needs no download; what it says is a preview of the daemon, not of its voices.
_PREVIEW_ENGINE = "espeak"

#: Names of voices may be in any script, headers may not.
_HEADER_SAFE = " !#$&'()*+,-./:<=>?@[]^_`{|}~"


class Events(Protocol):
    """A protocol that wraps the audio of one answer."""

    content_type: str

    def audio(self, data: bytes) -> bytes: ...

    def end(self, duration_s: float) -> bytes: ...

    def error(self, error: HttpError) -> bytes: ...


async def send_speech(
    request: Request, spoken: SpeechRequest, output: Output, *, filename: str = "speech", events: Events | None = None
) -> HTTPResponse | None:
    """Speaks `spoken` as `output` wants it. What a handler returns.

    The head goes out with the first audio, so whatever fails before is raised and has a status of its own. Afterwards
    an error is an event, or breaks the body off. With `output.hold_bytes` the answer comes whole up to that size.
    """
    service = context_of(request).service
    castings: list[Casting] = []
    async with aclosing(service.speak(spoken, castings.append)) as blocks:
        first = await anext(blocks, None)
        if first is None:
            raise EngineError("The engine made no audio.")
        # The first chain loads PyAV, for which nobody else should wait.
        chain = await asyncio.to_thread(AudioChain, first.sample_rate, output)
        suffix = output.encoding.format.name
        headers = speech_headers(castings[-1]) | {"content-disposition": f'attachment; filename="{filename}.{suffix}"'}
        speech = _Speech(first, blocks, chain)
        async with aclosing(speech.encoded()) as audio:
            if events is not None:
                del headers["content-disposition"]
                await _send_events(request, speech, audio, events, headers)
                return None
            return await _send_audio(request, audio, chain.content_type, headers, is_whole=output.hold_bytes > 0)


def speech_headers(casting: Casting) -> dict[str, str]:
    """Who speaks: the engine, and whether it is only the preview; the voice, and whether another stands in for it."""
    preview = "; preview=1" if is_preview(casting.engine) else ""
    stand_in = "; stand-in=1" if casting.is_stand_in else ""
    return {
        "x-fishs2-engine": casting.engine + preview,
        "x-fishs2-voice": quote(casting.name, safe=_HEADER_SAFE, errors="replace") + stand_in,
    }


def is_preview(engine: str | None) -> bool:
    return engine == _PREVIEW_ENGINE


@dataclass(slots=True)
class _Speech:
    """One answer on its way; `duration_s` is what was spoken so far."""

    first: Pcm
    blocks: AsyncGenerator[Pcm, None]
    chain: AudioChain
    duration_s: float = 0.0

    async def encoded(self) -> AsyncGenerator[bytes, None]:
        """The answer's bytes, none of them empty."""
        if data := self._feed(self.first):
            yield data
        async for block in self.blocks:
            if block.sample_rate != self.first.sample_rate:
                raise EngineError("The engine changed its sample rate.")
            if data := self._feed(block):
                yield data
        if data := self.chain.flush():
            yield data

    def _feed(self, block: Pcm) -> bytes:
        self.duration_s += block.duration_s
        return self.chain.feed(block.samples)


async def _send_audio(
    request: Request,
    audio: AsyncGenerator[bytes, None],
    content_type: str,
    headers: Mapping[str, str],
    *,
    is_whole: bool,
) -> HTTPResponse | None:
    data = await anext(audio, b"")
    following = await anext(audio, None) if is_whole else b""
    if following is None:
        return HTTPResponse(data, headers=dict(headers), content_type=content_type)
    response = await request.respond(headers=_streamed(headers), content_type=content_type)
    # The edge: with the status out, a broken body is all that is left to say of an error.
    try:
        await response.send(data + following)
        del data, following
        async for data in audio:
            await response.send(data)
    except Exception as error:
        _log_broken(request, error)
        cast(DoorProtocol, request.protocol).break_off()
        raise RequestCancelled from error
    return None


async def _send_events(
    request: Request,
    speech: _Speech,
    audio: AsyncGenerator[bytes, None],
    events: Events,
    headers: Mapping[str, str],
) -> None:
    data = await anext(audio, b"")
    response = await request.respond(headers=_streamed(headers), content_type=events.content_type)
    try:
        await response.send(events.audio(data))
        async for data in audio:
            await response.send(events.audio(data))
        await response.send(events.end(speech.duration_s))
    except Exception as error:  # noqa: BLE001 - the edge: with the status out, the error is an event
        _log_broken(request, error)
        await response.send(events.error(as_http_error(error)))


def _streamed(headers: Mapping[str, str]) -> dict[str, str]:
    # nginx would collect the stream until it is whole.
    return {**headers, "cache-control": "no-cache", "x-accel-buffering": "no"}


def _log_broken(request: Request, error: Exception) -> None:
    unexpected = None if isinstance(error, Fishs2Error) else error
    code, name = as_http_error(error).code, request_id(request)
    _log.error("id=%s broken off, %s: %s", name, code, error, exc_info=unexpected)
