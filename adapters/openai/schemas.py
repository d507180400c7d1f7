"""The JSON bodies that clients send."""

from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from adapters.openai.errors import HttpError

#: Voice names of OpenAI's own service, which clients send unasked, and names that the wrapper before this daemon took
#: for "no voice in particular".
PRESET_VOICES = frozenset(
    {"", "default", "random", "alloy", "ash", "ballad", "coral", "echo", "fable", "onyx", "nova", "sage", "shimmer"}
    | {"verse", "marin", "cedar"}
)


def _fail(code: str, message: str) -> NoReturn:
    raise PydanticCustomError(code, "{message}", {"message": message})


def _voice_id(value: Any) -> Any:
    if isinstance(value, dict):
        value = value.get("id")
    if not isinstance(value, str):
        _fail("invalid_value", 'a voice id, or an object such as {"id": "default"}')
    return value.strip()


def _no_reference(value: Any) -> Any:
    if value.strip() if isinstance(value, str) else value:
        _fail("reference_not_supported", "this engine does not clone voices; name one of its own in `voice`")
    return value


def _format(value: Any) -> Any:
    name = value.strip().lower() if isinstance(value, str) else None
    if name not in ("wav", "pcm"):
        _fail("unsupported_format", "this server makes wav and pcm")
    return name


def _stream_format(value: Any) -> Any:
    name = value.strip().lower() if isinstance(value, str) else None
    if name == "sse":
        _fail("unsupported_stream_format", "sse is not supported yet; audio is")
    if name != "audio":
        _fail("unsupported_stream_format", "audio is the only stream format")
    return name


Reference = Annotated[Any, AfterValidator(_no_reference)]


class SpeechBody(BaseModel):
    """`POST /v1/audio/speech`. Null stands for absent, and unknown fields (`instructions` among them) are ignored.

    The fields that ask for a voice of another recording are not: nobody hears another voice than the one asked for.
    """

    model_config = ConfigDict(protected_namespaces=())

    model: str
    input: str
    voice: Annotated[str, BeforeValidator(_voice_id)] = "default"
    speed: Annotated[float, Field(ge=0.25, le=4)] = 1.0
    stream: bool | None = None
    stream_format: Annotated[Literal["audio"] | None, BeforeValidator(_stream_format)] = None
    reference_audio: Reference = None
    prompt_audio: Reference = None
    ref_audio: Reference = None
    speaker_wav: Reference = None
    references: Reference = None
    reference_id: Reference = None
    response_format: Annotated[Literal["wav", "pcm"], BeforeValidator(_format)] = "wav"

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Raises `HttpError` (422) that names the first wrong field and what it may be."""
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            raise _explain(error) from None

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data


def _explain(error: ValidationError) -> HttpError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    kind, message = first["type"], first["msg"]
    param = str(first["loc"][0]) if first["loc"] else None
    if kind == "json_invalid":
        return HttpError(422, "invalid_json", f"The body is not a JSON object in UTF-8: {message}")
    if param is None:
        return HttpError(422, "invalid_json", "The body is not a JSON object.")
    if kind == "missing":
        return HttpError(422, "missing_required_parameter", f"{param}: this field is required", param=param)
    code = kind if kind.startswith("unsupported_") or kind == "reference_not_supported" else "invalid_value"
    return HttpError(422, code, f"{param}: {message}", param=param)
