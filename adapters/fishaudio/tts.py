"""`POST /v1/tts` and `POST /v1/tts/stream/with-timestamp`."""

from collections.abc import Callable

from sanic import HTTPResponse, Request

from adapters.fishaudio.bodies import model_of
from adapters.fishaudio.schemas import TtsBody
from adapters.fishaudio.spoken import spoken
from adapters.fishaudio.timestamps import TimestampEvents
from adapters.openai.answers import Events, send_speech
from adapters.openai.context import context_of
from adapters.openai.speech import max_body_bytes
from fishs2_daemon.speech import Priority


async def speak(request: Request) -> HTTPResponse | None:
    """Whatever the header `model` asks for, there is one model. A stream, but for a wav, which has its true length in
    its head, unless `streaming` says otherwise."""
    return await _speak(request, lambda body: None)


async def speak_with_timestamps(request: Request) -> HTTPResponse | None:
    return await _speak(request, lambda body: TimestampEvents(body.text, body.prosody.speed or 1.0))


async def _speak(request: Request, events_of: Callable[[TtsBody], Events | None]) -> HTTPResponse | None:
    context = context_of(request)
    async with model_of(request, TtsBody, max_body_bytes(context.settings)) as body:
        events = events_of(body)
        streaming = body.format != "wav" if body.streaming is None else body.streaming
        output = body.output(is_whole=events is None and not streaming)
        recordings = body.taken_recordings()
    async with spoken(context, body, recordings, body.text, Priority.READING) as asked:
        return await send_speech(request, asked, output, filename="audio", events=events)
