"""`POST /v1/audio/speech`."""

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sanic import HTTPResponse, Request

from adapters.openai.answers import MAX_WHOLE_BYTES, send_speech
from adapters.openai.bodies import body_of
from adapters.openai.context import DoorContext, context_of, max_text_body_bytes
from adapters.openai.errors import HttpError
from adapters.openai.instructions import Instructions, style_of
from adapters.openai.models import find_model
from adapters.openai.schemas import CONTROL_CHARS, PRESET_VOICES, SpeechBody
from adapters.openai.sse import SpeechEvents
from fishs2_daemon.audio.chain import Output
from fishs2_daemon.audio.formats import encoding
from fishs2_daemon.errors import InvalidRequest, UnknownVoice
from fishs2_daemon.peers import INSTANCE_HEADER
from fishs2_daemon.references import Recording
from fishs2_daemon.settings import Settings
from fishs2_daemon.speech import Clip, Priority, SamplingOverrides, SpeechRequest
from fishs2_daemon.voices.limits import VoiceLimits
from fishs2_daemon.voices.meta import StoredVoice

if TYPE_CHECKING:
    from fishs2_daemon.service import SpeechService

#: OpenAI's pcm has no header, so its rate is part of the contract.
PCM_RATE = 24000

#: Inline recordings of one request, decoded: what a stored voice may have, which another of these daemons sends along.
INLINE_BYTES = VoiceLimits().clip_bytes

#: A body that is parsed on the loop; a larger one holds nobody else up.
_SMALL_BODY_BYTES = 64 * 1024


def max_body_bytes(settings: Settings) -> int:
    return max_text_body_bytes(settings) + INLINE_BYTES * 4 // 3


async def speak(request: Request) -> HTTPResponse | None:
    """Errors come in this order: body, format, instructions, model, voice, transcript, recording, synthesis."""
    if request.headers.get(INSTANCE_HEADER) == context_of(request).service.instance:
        raise InvalidRequest("this is the daemon that asks: FISHS2_REMOTE_URLS names its own address")
    async with body_of(request, max_body_bytes(context_of(request).settings)) as data:
        body = await _parsed(data)
        del data
        wishes = Instructions.parse(body.instructions)
        output = _output(request, body)
        find_model(context_of(request).settings, body.model)
        recordings = await _recordings(body, wishes)
    body.references.clear()
    async with _spoken(context_of(request), body, wishes, recordings) as spoken:
        del recordings
        events = SpeechEvents(body.input) if body.stream_format == "sse" else None
        return await send_speech(request, spoken, output, events=events)


async def _parsed(data: bytes) -> SpeechBody:
    return SpeechBody.parse(data) if len(data) <= _SMALL_BODY_BYTES else await asyncio.to_thread(SpeechBody.parse, data)


def _output(request: Request, body: SpeechBody) -> Output:
    own_rate = PCM_RATE if body.response_format == "pcm" else None
    return Output(
        encoding(body.response_format, own_rate if body.sample_rate is None else body.sample_rate),
        body.pace,
        body.prosody.volume,
        body.prosody.normalize_loudness,
        hold_bytes=0 if _wants_stream(request, body) else MAX_WHOLE_BYTES,
    )


def _wants_stream(request: Request, body: SpeechBody) -> bool:
    if body.stream_format == "sse":
        return True
    if body.stream is not None:
        return body.stream
    # `with_streaming_response` of OpenAI's client shows in this header alone.
    streaming_client = request.headers.getone("x-stainless-raw-response", "") == "stream"
    return body.response_format == "pcm" or body.stream_format == "audio" or streaming_client


async def _recordings(body: SpeechBody, wishes: Instructions) -> list[Recording]:
    """Those to clone for this request alone, of speaker 0, 1, ..."""
    said = _transcript(body, wishes)
    if body.references:
        return [
            Recording(
                await asyncio.to_thread(_decoded, each.audio, f"references.{number}.audio"), each.text.strip() or said
            )
            for number, each in enumerate(body.references)
        ]
    for name in ("reference_audio", "prompt_audio", "ref_audio"):
        if given := getattr(body, name).strip():
            return [Recording(given, said, name)]
    if body.speaker_wav and (given := body.speaker_wav[0].strip()):
        return [Recording(given, said, "speaker_wav")]
    return []


def _transcript(body: SpeechBody, wishes: Instructions) -> str:
    given = (body.reference_text, body.ref_text, wishes.reference_text, body.prompt_text, wishes.prompt_text)
    return next((text.strip() for text in given if text.strip()), "")


def _decoded(audio: str, param: str) -> bytes:
    """The bytes of base64, bare or as a data: URL."""
    encoded = audio.partition(",")[2] if audio.startswith("data:") else audio
    if "\n" in encoded or " " in encoded:
        encoded = "".join(encoded.split())
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        message = f"{param}: base64 of a recording, or a data: URL with it"
        raise HttpError(422, "invalid_reference_audio", message, param=param) from None


@asynccontextmanager
async def _spoken(
    context: DoorContext, body: SpeechBody, wishes: Instructions, recordings: list[Recording]
) -> AsyncIterator[SpeechRequest]:
    """What the service is asked; the recordings stay for as long as the context lasts."""
    service = context.service
    sampling = SamplingOverrides(**{**body.given(), **wishes.sampling, **body.fishs2.given()})
    control = body.control.strip() or wishes.control.strip()
    style = ", ".join(part for part in (style_of(control, CONTROL_CHARS), wishes.style) if part) or None
    voice = None
    if not recordings and not body.voices:
        voice = await _voice(body.reference_id or body.voice, service)
    clips: tuple[Clip, ...] = ()
    if voice is not None and (said := _transcript(body, wishes)) and (stored := await _stored(voice, service)):
        # Its recording, with the words that this request says are in it.
        clip = stored.clips[0]
        clips = (Clip(str(clip.path), clip.sha256 or "", said),)
        sampling, style = sampling.over(stored.sampling), style or stored.style
    speakers = {number: await _voice(name, service) or "default" for number, name in body.voices.items()}
    async with context.references.held(recordings) as held:
        del recordings
        yield SpeechRequest(
            body.input,
            voice,
            sampling=sampling,
            priority=Priority.READING,
            references=held or clips,
            voices={} if held else speakers,
            style=style,
            ssml=body.text_format == "ssml",
            clean=body.normalize,
        )


async def _voice(asked: str, service: "SpeechService") -> str | None:
    """None stands for the default voice. OpenAI's names mean that, unless there is a voice of that name."""
    if asked.lower() not in PRESET_VOICES:
        return asked
    if asked.lower() in ("", "default"):
        return None
    await service.refresh()
    return next((voice.id for voice in service.voices() if voice.id.casefold() == asked.casefold()), None)


async def _stored(voice: str, service: "SpeechService") -> StoredVoice | None:
    """Where the engine clones: the stored voice of that name, if it has recordings."""
    if service.engine is not None and not service.engine.clones:
        return None
    try:
        stored = await asyncio.to_thread(service.catalogue.store.resolve, voice)
    except UnknownVoice:
        return None
    return stored if stored.clips else None
