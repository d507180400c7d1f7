"""The JSON bodies that clients send.

Null stands for absent, and unknown fields are ignored.
"""

from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from adapters.openai.errors import HttpError
from fishs2_daemon.audio.chain import SPEEDS, VOLUMES_DB
from fishs2_daemon.audio.formats import FORMATS
from fishs2_daemon.speech import SAMPLING_RANGES
from fishs2_daemon.voices.limits import VoiceLimits
from fishs2_daemon.voices.meta import TRANSCRIPT_CHARS

#: Voice names of OpenAI's own service, which clients send unasked, and names that the wrapper before this daemon took
#: for "no voice in particular".
PRESET_VOICES = frozenset(
    {"", "default", "random", "alloy", "ash", "ballad", "coral", "echo", "fable", "onyx", "nova", "sage", "shimmer"}
    | {"verse", "marin", "cedar"}
)

#: As the reference wrapper allows.
INSTRUCTIONS_CHARS = 4096
CONTROL_CHARS = 512

#: Longest path that Linux takes.
_PATH_CHARS = 4096

#: Longest id that a stored voice can have is 255 bytes; what is longer is none.
_VOICE_CHARS = 1024

#: An error names the place of a wrong value, which a client may have invented.
_PARAM_CHARS = 100

#: More than any of the words that the settings take.
_SETTING_CHARS = 64

#: What a conversation of S2 has; each needs a voice.
_SPEAKERS = 64


def _fail(code: str, message: str) -> NoReturn:
    raise PydanticCustomError(code, "{message}", {"message": message})


def _voice_id(value: Any) -> Any:
    if isinstance(value, dict):
        value = value.get("id")
    if not isinstance(value, str):
        _fail("invalid_value", 'a voice id, or an object such as {"id": "default"}')
    return value.strip()


def _format(value: Any) -> Any:
    name = value.strip().lower() if isinstance(value, str) else None
    if name not in FORMATS:
        _fail("unsupported_format", f"this server makes {', '.join(FORMATS)}")
    return name


def _stream_format(value: Any) -> Any:
    name = value.strip().lower() if isinstance(value, str) else None
    if name not in ("audio", "sse"):
        _fail("unsupported_stream_format", "audio or sse")
    return name


def _text_format(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


class _Body(BaseModel):
    model_config = ConfigDict(protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Raises `HttpError` (422) that names the first wrong field and what it may be."""
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            raise _explain(error) from None


def _range(name: str) -> Any:
    _, least, most = SAMPLING_RANGES[name]
    return Field(ge=least, le=most)


VoiceId = Annotated[str, BeforeValidator(_voice_id), Field(max_length=_VOICE_CHARS)]
Transcript = Annotated[str, Field(max_length=TRANSCRIPT_CHARS)]
ServerPath = Annotated[str, Field(max_length=_PATH_CHARS)]
Speed = Annotated[float, Field(ge=SPEEDS[0], le=SPEEDS[1])]


class Sampling(_Body):
    """How the model draws, as the reference wrapper names it. `n_threads` and `verbose` were its runtime's; here they
    are settings, and what a request says of them means nothing."""

    max_new_tokens: Annotated[int, _range("max_new_tokens")] | None = None
    temperature: Annotated[float, _range("temperature")] | None = None
    top_p: Annotated[float, _range("top_p")] | None = None
    top_k: Annotated[int, _range("top_k")] | None = None
    seed: Annotated[int, _range("seed")] | None = None
    min_tokens_before_end: Annotated[int, _range("min_tokens_before_end")] | None = None
    n_threads: Annotated[int, Field(ge=0, le=512)] | None = None
    verbose: bool | None = None

    def given(self) -> dict[str, Any]:
        """What was said, of what means something."""
        return {name: value for name in SAMPLING_RANGES if (value := getattr(self, name)) is not None}


class Prosody(_Body):
    """`volume` in dB."""

    speed: Speed | None = None
    volume: Annotated[float, Field(ge=VOLUMES_DB[0], le=VOLUMES_DB[1])] = 0.0
    normalize_loudness: bool = False


class InlineReference(_Body):
    """A recording in base64, bare or as a data: URL, and what is said in it."""

    audio: str
    text: Transcript = ""


class SpeechBody(Sampling):
    """`POST /v1/audio/speech`."""

    model: str
    input: Annotated[str, Field(min_length=1)]
    voice: VoiceId = "default"
    reference_id: VoiceId = ""
    voices: Annotated[dict[Annotated[int, Field(ge=0, lt=_SPEAKERS)], VoiceId], Field(max_length=_SPEAKERS)] = {}
    instructions: Annotated[str, Field(max_length=INSTRUCTIONS_CHARS)] = ""
    control: Annotated[str, Field(max_length=CONTROL_CHARS)] = ""
    text_format: Annotated[Literal["text", "ssml"], BeforeValidator(_text_format)] = "text"
    normalize: bool | None = None
    speed: Speed = 1.0
    prosody: Prosody = Prosody()
    sample_rate: int | None = None
    stream: bool | None = None
    stream_format: Annotated[Literal["audio", "sse"] | None, BeforeValidator(_stream_format)] = None
    fishs2: Sampling = Sampling()
    references: Annotated[list[InlineReference], Field(max_length=VoiceLimits().clips)] = []
    reference_audio: ServerPath = ""
    prompt_audio: ServerPath = ""
    ref_audio: ServerPath = ""
    speaker_wav: list[ServerPath] = []
    reference_text: Transcript = ""
    ref_text: Transcript = ""
    prompt_text: Transcript = ""
    chunk_length: Annotated[int, Field(ge=0)] | None = None
    latency: str | None = None
    # The last one, so that every other field's error comes first.
    response_format: Annotated[Literal["wav", "mp3", "opus", "aac", "flac", "pcm"], BeforeValidator(_format)] = "wav"

    @property
    def pace(self) -> float:
        """`prosody.speed` says the same as `speed` once more, or says it alone."""
        return self.speed if self.speed != 1.0 else (self.prosody.speed or 1.0)


class ReloadBody(_Body):
    """`POST /admin/reload`: settings to change beside what the environment file says. What may be in them is the
    settings' own business."""

    model_config = ConfigDict(protected_namespaces=(), extra="forbid")

    engine: Annotated[str, Field(max_length=_SETTING_CHARS)] | None = None
    model_quant: Annotated[str, Field(max_length=_SETTING_CHARS)] | None = None


def _explain(error: ValidationError) -> HttpError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    kind, message = first["type"], first["msg"]
    param = ".".join(map(str, first["loc"]))[:_PARAM_CHARS] or None
    if kind == "json_invalid":
        return HttpError(422, "invalid_json", f"The body is not a JSON object in UTF-8: {message}")
    if param is None:
        return HttpError(422, "invalid_json", "The body is not a JSON object.")
    if kind == "missing":
        return HttpError(422, "missing_required_parameter", f"{param}: this field is required", param=param)
    code = kind if kind.startswith("unsupported_") else "invalid_value"
    return HttpError(422, code, f"{param}: {message}", param=param)
