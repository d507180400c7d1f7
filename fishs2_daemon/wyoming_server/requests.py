"""Speech requests as Wyoming events carry them. Nothing in an event is trusted to have its type."""

import asyncio
from typing import Any, Self

from wyoming.event import Event

from fishs2_daemon.errors import InvalidRequest, ProtocolError, TextTooLong, UnknownVoice
from fishs2_daemon.speech import SpeechRequest


class TextStream:
    """The text between `synthesize-start` and `synthesize-stop`: chunks go in, an async iterator comes out."""

    def __init__(self, max_chars: int) -> None:
        self._left = self._max_chars = max_chars
        self._chunks: asyncio.Queue[str | None] = asyncio.Queue()

    def add(self, chunk: str) -> None:
        """Raises `TextTooLong`; what is kept is bounded by it."""
        self._left -= max(len(chunk), 1)
        if self._left < 0:
            raise TextTooLong(f"the text is longer than {self._max_chars} characters")
        self._chunks.put_nowait(chunk)

    def close(self) -> None:
        self._chunks.put_nowait(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        chunk = await self._chunks.get()
        if chunk is None:
            raise StopAsyncIteration
        return chunk


def text_of(event: Event) -> str:
    """The `text` of `synthesize` or `synthesize-chunk`. Raises `ProtocolError`."""
    text = event.data.get("text")
    if not isinstance(text, str):
        raise ProtocolError(f"`text` of {event.type} must be a string")
    return text


def request_of(event: Event, text: str | TextStream) -> SpeechRequest:
    """The request of `synthesize` or `synthesize-start`. Raises `ProtocolError` or `RequestError`."""
    text_format = _string(event, event.data, "text_format")
    if text_format not in (None, "text", "ssml"):
        raise InvalidRequest(
            f"`text_format` of {event.type} is {text_format!r}; allowed: text, ssml", param="text_format"
        )
    ssml = text_format == "ssml"
    voice = event.data.get("voice")
    if voice is None:
        return SpeechRequest(text, ssml=ssml)
    if not isinstance(voice, dict):
        raise ProtocolError(f"`voice` of {event.type} must be an object with `name`, `language` or `speaker`")
    name = _string(event, voice, "name")
    if speaker := _string(event, voice, "speaker"):
        raise UnknownVoice(f"the voice {name or 'default'!r} has no speaker {speaker!r}; leave `speaker` out")
    return SpeechRequest(text, voice=name, language=_string(event, voice, "language"), ssml=ssml)


def _string(event: Event, fields: dict[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise ProtocolError(f"`{name}` of {event.type} must be a string")
    return value or None
