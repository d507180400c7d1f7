"""What clients of Fish Audio's APIs send. Null stands for absent, and unknown fields are ignored."""

import base64
import binascii
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from adapters.openai.answers import MAX_WHOLE_BYTES
from adapters.openai.schemas import Prosody, Sampling, Transcript, VoiceId
from fishs2_daemon.audio.chain import Output
from fishs2_daemon.audio.formats import encoding
from fishs2_daemon.errors import InvalidRequest, MissingTranscript
from fishs2_daemon.references import Recording
from fishs2_daemon.voices.limits import VoiceLimits

#: Of wav and pcm, whatever the engine's own rate is.
SAMPLE_RATE = 44100

#: Recordings or voices of one request, one for each speaker of its text.
_SPEAKERS = VoiceLimits().clips

Format = Literal["wav", "mp3", "opus", "aac", "flac", "pcm"]


def _audio(value: Any) -> Any:
    """MessagePack has bytes; JSON has base64, bare or as a data: URL."""
    if not isinstance(value, str):
        return value
    encoded = value.partition(",")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError):
        raise PydanticCustomError("invalid_audio", "the bytes of a recording; in JSON, in base64") from None


def _first_of_each(value: Any) -> Any:
    """A list in the list is several recordings of one speaker, of which the first is cloned."""
    if not isinstance(value, list):
        return value
    return [each[0] if isinstance(each, list) and each else each for each in value]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Reference(BaseModel):
    """A recording to clone, and what is said in it."""

    audio: Annotated[bytes, BeforeValidator(_audio)]
    text: Transcript | None = None


class TtsBody(Sampling):
    """`POST /v1/tts`, and `request` of the live protocol's `start`.

    The same fields for the hosted service and for fish-speech's own server, with the hosted one's defaults. Without
    effect here are chunk_length, min_chunk_length, condition_on_previous_chunks, latency, early_stop_threshold,
    repetition_penalty and use_memory_cache: the text is split, batched and drawn in the engine's own way.
    """

    text: str
    format: Format = "mp3"
    sample_rate: int | None = None
    mp3_bitrate: int | None = None
    opus_bitrate: int | None = None
    references: Annotated[list[Reference], BeforeValidator(_first_of_each)] = Field([], max_length=_SPEAKERS)
    reference_id: Annotated[list[VoiceId], BeforeValidator(_listed)] = Field([], max_length=_SPEAKERS)
    normalize: bool = True
    prosody: Prosody = Prosody()
    streaming: bool | None = None

    def output(self, *, is_whole: bool = False) -> Output:
        """Raises `InvalidRequest`. `is_whole`: the answer comes in one piece where it is not too long."""
        default_rate = SAMPLE_RATE if self.format in ("wav", "pcm") else None
        bit_rate_kbps = {"mp3": self.mp3_bitrate, "opus": self.opus_bitrate}.get(self.format)
        try:
            chosen = encoding(self.format, self.sample_rate or default_rate, bit_rate_kbps)
        except InvalidRequest as error:
            error.param = f"{self.format}_bitrate" if error.param == "bit_rate" else error.param
            raise
        return Output(
            chosen,
            self.prosody.speed or 1.0,
            self.prosody.volume,
            self.prosody.normalize_loudness,
            hold_bytes=MAX_WHOLE_BYTES if is_whole else 0,
        )

    def taken_recordings(self) -> list[Recording]:
        """Those of speaker 0, 1, ...; the body has them no more. Raises `MissingTranscript`."""
        recordings = []
        for number, reference in enumerate(self.references):
            param = f"references.{number}"
            if not (transcript := (reference.text or "").strip()):
                raise MissingTranscript(
                    f"{param}.text: cloning needs the words that are said in the recording", param=f"{param}.text"
                )
            recordings.append(Recording(reference.audio, transcript, param))
        self.references.clear()
        return recordings


class VoiceName(BaseModel):
    """`/v1/references/delete`"""

    reference_id: str


class VoiceRenaming(BaseModel):
    """`/v1/references/update`"""

    old_reference_id: str
    new_reference_id: str
