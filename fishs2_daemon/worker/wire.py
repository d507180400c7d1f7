"""The wire between daemon and worker: length-prefixed frames on a socket pair.

    +------+--------------+--------+----------+
    | kind | utterance id | length | body     |     u8, u32, u32 (network order), then `length` bytes
    +------+--------------+--------+----------+

Bodies are JSON, UTF-8 text, or samples behind their rate; nothing is ever unpickled.
"""

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

from fishs2_daemon.engines.base import Utterance
from fishs2_daemon.errors import Busy, ProtocolError
from fishs2_daemon.speech import Clip, EngineInfo, Pcm, Priority, SamplingOverrides, Voice
from fishs2_daemon.text.phrase import Phrase

#: Room for a list of some 20,000 voices; audio and phrases stay far below.
MAX_BODY_BYTES = 4 * 1024 * 1024

#: Audio that the worker may send ahead of the reader of one answer: 6 s at 22.05 kHz, 3 s at 44.1 kHz.
WINDOW_BYTES = 256 * 1024

_HEADER = struct.Struct("!BII")
_U32 = struct.Struct("!I")


class Kind(IntEnum):
    """Below 16: daemon to worker. From 16 on: worker to daemon."""

    LOAD = 1  # JSON: engine, options, log_level
    START = 2  # JSON: what `Utterance` has beside its phrases
    PHRASE = 3  # JSON: text, pause_s, speaker
    FINISH = 4
    CANCEL = 5
    CREDIT = 6  # u32: bytes of audio that were consumed
    PING = 7
    REFRESH = 8
    PROGRESS = 16  # JSON: what, fraction
    READY = 17  # JSON: EngineInfo; answers LOAD and REFRESH
    FAILED = 18  # text: why the engine did not load
    AUDIO = 19  # u32 sample rate, samples
    END = 20  # the utterance is over, spoken or cancelled
    ERROR = 21  # text: why the utterance failed; it is over
    PONG = 22
    BUSY = 23  # JSON: text, retry_after_s; the utterance is over, and was not begun


@dataclass(frozen=True, slots=True)
class Frame:
    kind: Kind
    utterance: int = 0
    body: bytes = b""

    def encode(self) -> bytes:
        return _HEADER.pack(self.kind, self.utterance, len(self.body)) + self.body


async def read_frame(reader: asyncio.StreamReader) -> Frame | None:
    """The next frame, or None at the end of the stream. Raises `ProtocolError` for what no peer of ours sends."""
    try:
        kind, utterance, length = _HEADER.unpack(await reader.readexactly(_HEADER.size))
        if length > MAX_BODY_BYTES:
            raise ProtocolError(f"worker frame of {length} bytes; at most {MAX_BODY_BYTES}")
        body = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    try:
        return Frame(Kind(kind), utterance, body)
    except ValueError:
        raise ProtocolError(f"worker frame of unknown kind {kind}") from None


def json_frame(kind: Kind, utterance: int = 0, **fields: Any) -> Frame:
    return Frame(kind, utterance, json.dumps(fields).encode())


def text_frame(kind: Kind, utterance: int, text: str) -> Frame:
    return Frame(kind, utterance, text.encode())


def fields_of(frame: Frame) -> dict[str, Any]:
    try:
        fields = json.loads(frame.body)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise ProtocolError(f"worker frame {frame.kind.name}: not a JSON object")
    return fields


def start_frame(number: int, utterance: Utterance) -> Frame:
    return json_frame(
        Kind.START, number, voice=utterance.voice, priority=utterance.priority, sampling=asdict(utterance.sampling),
        clips=[asdict(clip) for clip in utterance.clips],
    )  # fmt: skip


def utterance_of(frame: Frame, phrases: AsyncIterator[Phrase]) -> Utterance:
    fields = fields_of(frame)
    try:
        return Utterance(
            voice=fields["voice"], phrases=phrases, clips=tuple(Clip(**clip) for clip in fields["clips"]),
            sampling=SamplingOverrides(**fields["sampling"]), priority=Priority(fields["priority"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"worker frame START: {error!r}") from None


def phrase_frame(number: int, phrase: Phrase) -> Frame:
    return json_frame(Kind.PHRASE, number, text=phrase, pause_s=phrase.pause_s, speaker=phrase.speaker)


def phrase_of(frame: Frame) -> Phrase:
    fields = fields_of(frame)
    try:
        return Phrase(str(fields["text"]), float(fields["pause_s"]), fields["speaker"])
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"worker frame PHRASE: {error!r}") from None


def audio_frame(utterance: int, pcm: Pcm) -> Frame:
    return Frame(Kind.AUDIO, utterance, _U32.pack(pcm.sample_rate) + pcm.samples)


def pcm_of(frame: Frame) -> Pcm:
    if len(frame.body) < _U32.size:
        raise ProtocolError("worker frame AUDIO: no sample rate")
    return Pcm(frame.body[_U32.size :], _U32.unpack_from(frame.body)[0])


def busy_frame(utterance: int, busy: Busy) -> Frame:
    return json_frame(Kind.BUSY, utterance, text=str(busy), retry_after_s=busy.retry_after_s)


def busy_of(frame: Frame) -> Busy:
    fields = fields_of(frame)
    try:
        return Busy(str(fields["text"]), retry_after_s=int(fields["retry_after_s"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"worker frame BUSY: {error!r}") from None


def credit_frame(utterance: int, consumed: int) -> Frame:
    return Frame(Kind.CREDIT, utterance, _U32.pack(consumed))


def credit_of(frame: Frame) -> int:
    if len(frame.body) != _U32.size:
        raise ProtocolError("worker frame CREDIT: not a number")
    return int(_U32.unpack(frame.body)[0])


def ready_frame(info: EngineInfo) -> Frame:
    voices = [[voice.id, voice.description, list(voice.languages)] for voice in info.voices]
    return json_frame(
        Kind.READY, name=info.name, sample_rate=info.sample_rate, slots=info.slots, default_voice=info.default_voice,
        voices=voices, clones=info.clones, device=info.device, frame_kernels=info.frame_kernels,
    )  # fmt: skip


def engine_info_of(frame: Frame) -> EngineInfo:
    fields = fields_of(frame)
    try:
        voices = tuple(Voice(id_, text, tuple(languages)) for id_, text, languages in fields.pop("voices"))
        return EngineInfo(voices=voices, **fields)
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"worker frame READY: {error!r}") from None
