"""`POST /v1/audio/speech`."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

from sanic import HTTPResponse, Request
from sanic.exceptions import RequestCancelled

from adapters.openai.context import context_of
from adapters.openai.errors import as_http_error
from adapters.openai.identity import request_id
from adapters.openai.models import find_model
from adapters.openai.protocol import DoorProtocol
from adapters.openai.schemas import PRESET_VOICES, SpeechBody
from fishs2_daemon.audio import wav
from fishs2_daemon.audio.convert import PcmConverter
from fishs2_daemon.errors import EngineError, Fishs2Error
from fishs2_daemon.speech import Pcm, SpeechRequest, Voice

_log = logging.getLogger(__name__)

#: OpenAI's pcm has no header, so its rate is part of the contract.
PCM_RATE = 24000

#: An answer that is to come whole is held up to this size, six minutes at 22 kHz; a longer one goes on as a stream.
MAX_WHOLE_BYTES = 16 * 1024 * 1024


async def speak(request: Request) -> HTTPResponse | None:
    """The head goes out with the first audio, so whatever fails before has a status of its own."""
    context = context_of(request)
    body = SpeechBody.parse(request.body)
    find_model(context.settings, body.model)
    spoken = SpeechRequest(body.input, voice=_voice(body.voice, context.service.voices()))
    async with aclosing(context.service.speak(spoken)) as blocks:
        first = await anext(blocks, None)
        if first is None:
            raise EngineError("The engine made no audio.")
        converter = await _converter(first.sample_rate, body)
        async with aclosing(_converted(first, blocks, converter)) as audio:
            return await _send(request, audio, body, first.sample_rate)


async def _send(
    request: Request, audio: AsyncGenerator[bytes, None], body: SpeechBody, rate: int
) -> HTTPResponse | None:
    bound = 0 if _wants_stream(request, body) else MAX_WHOLE_BYTES
    content_type = f"audio/{body.response_format}"
    held = bytearray()
    async for samples in audio:
        held += samples
        if len(held) > bound:
            break
    else:
        head = wav.header(rate, len(held)) if body.response_format == "wav" else b""
        return HTTPResponse(head + held, content_type=content_type)
    response = await request.respond(content_type=content_type)
    if body.response_format == "wav":
        held[:0] = wav.header(rate, None)
    # The edge: with the status out, a broken body is all that is left to say of an error.
    try:
        await response.send(bytes(held))
        del held
        async for samples in audio:
            if samples:
                await response.send(samples)
    except Exception as error:
        unexpected = None if isinstance(error, Fishs2Error) else error
        code, name = as_http_error(error).code, request_id(request)
        _log.error("id=%s broken off, %s: %s", name, code, error, exc_info=unexpected)
        cast(DoorProtocol, request.protocol).break_off()
        raise RequestCancelled from error
    return None


async def _converter(source_rate: int, body: SpeechBody) -> PcmConverter:
    target_rate = PCM_RATE if body.response_format == "pcm" else source_rate
    if (source_rate, 1.0) == (target_rate, body.speed):
        return PcmConverter(source_rate, target_rate)
    # The first one loads PyAV, for which nobody else should wait.
    return await asyncio.to_thread(PcmConverter, source_rate, target_rate, body.speed)


async def _converted(
    first: Pcm, blocks: AsyncGenerator[Pcm, None], converter: PcmConverter
) -> AsyncGenerator[bytes, None]:
    yield converter.feed(first.samples)
    async for block in blocks:
        if block.sample_rate != first.sample_rate:
            raise EngineError("The engine changed its sample rate.")
        yield converter.feed(block.samples)
    yield converter.flush()


def _wants_stream(request: Request, body: SpeechBody) -> bool:
    if body.stream is not None:
        return body.stream
    # `with_streaming_response` of OpenAI's client shows in this header alone.
    streaming_client = request.headers.getone("x-stainless-raw-response", "") == "stream"
    return body.response_format == "pcm" or body.stream_format == "audio" or streaming_client


def _voice(asked: str, voices: tuple[Voice, ...]) -> str | None:
    if any(voice.id == asked for voice in voices):
        return asked
    return None if asked.lower() in PRESET_VOICES else asked
