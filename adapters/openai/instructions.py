"""`instructions` of a speech request: how it is to be spoken, in words, or as JSON with the model's own options."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from pydantic import ValidationError

from adapters.openai.errors import HttpError
from adapters.openai.schemas import CONTROL_CHARS, Sampling
from fishs2_daemon.voices.meta import STYLE_CHARS, TRANSCRIPT_CHARS

#: Characters that would end a style's tag, or begin one of the model's control tokens; all that does not show; spaces.
_NO_STYLE = re.compile(r"[\[\]<>|\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]+")


@dataclass(frozen=True, slots=True)
class Instructions:
    """What `instructions` say; empty where they say nothing."""

    style: str = ""
    control: str = ""
    reference_text: str = ""
    prompt_text: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Instructions":
        """JSON begins with `{`, anything else is words. Raises `HttpError` (422) with param `instructions`."""
        if not text.lstrip().startswith("{"):
            return cls(style=style_of(text, STYLE_CHARS))
        said = _object(text)
        return cls(
            control=_text(said, "control", CONTROL_CHARS),
            reference_text=_text(said, "reference_text", TRANSCRIPT_CHARS),
            prompt_text=_text(said, "prompt_text", TRANSCRIPT_CHARS),
            sampling=_sampling(said),
        )


def style_of(text: str, longest: int) -> str:
    """`text` as one line that fits into a tag such as `[whisper]`; a longer one ends with a whole word."""
    line = _NO_STYLE.sub(" ", text).strip()
    return line if len(line) <= longest else (line[: longest + 1].rpartition(" ")[0] or line[:longest])


def _object(text: str) -> dict[str, Any]:
    try:
        said: dict[str, Any] = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise HttpError(
            422, "invalid_instructions_json", "instructions: begin with { and are no JSON object", param="instructions"
        ) from None
    return {name: value for name, value in said.items() if value is not None}


def _sampling(said: Mapping[str, Any]) -> dict[str, Any]:
    nested = said.get("fishs2", {})
    flat = {name: said[name] for name in Sampling.model_fields if name in said}
    try:
        return {**Sampling.model_validate(nested).given(), **Sampling.model_validate(flat).given()}
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = ".".join(map(str, first["loc"])) or "fishs2"
        raise HttpError(
            422, "invalid_instructions_fishs2", f"instructions: {name}: {first['msg']}", param="instructions"
        ) from None


def _text(said: Mapping[str, Any], name: str, longest: int) -> str:
    value = said.get(name, "")
    if not isinstance(value, str):
        _refuse_type(name)
    if len(value) > longest:
        message = f"instructions: {name}: at most {longest} characters"
        raise HttpError(422, "invalid_instructions_payload", message, param="instructions")
    # JSON can write halves of characters, which nothing can speak.
    return value.encode("utf-8", "replace").decode("utf-8")


def _refuse_type(name: str) -> NoReturn:
    message = f"instructions: {name}: a text"
    match name:
        case "control":
            raise HttpError(422, "invalid_instructions_control", message, param="instructions")
        case "reference_text":
            raise HttpError(422, "invalid_instructions_reference_text", message, param="instructions")
    raise HttpError(422, "invalid_instructions_prompt_text", message, param="instructions")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
