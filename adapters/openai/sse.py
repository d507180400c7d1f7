"""Speech as server-sent events, as OpenAI's API sends them with `stream_format: sse`.

data: {"type": "speech.audio.delta", "audio": "<base64 of the asked format>"}
data: {"type": "speech.audio.done", "usage": {"input_tokens": 3, "output_tokens": 22, "total_tokens": 25}}
"""

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

from adapters.openai.errors import HttpError

#: The model's frames: 2048 samples at 44.1 kHz each, whichever engine speaks.
_FRAMES_PER_S = 44100 / 2048

#: What OpenAI gives as a rule of thumb.
_CHARS_PER_TOKEN = 4


class SpeechEvents:
    """The events of one answer. `usage` counts frames of the model as output, and estimates the text's tokens."""

    content_type = "text/event-stream"

    def __init__(self, text: str) -> None:
        self._input_tokens = math.ceil(len(text) / _CHARS_PER_TOKEN)

    def audio(self, data: bytes) -> bytes:
        return _event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})

    def end(self, duration_s: float) -> bytes:
        output_tokens = math.ceil(duration_s * _FRAMES_PER_S)
        usage = {
            "input_tokens": self._input_tokens,
            "output_tokens": output_tokens,
            "total_tokens": self._input_tokens + output_tokens,
        }
        return _event({"type": "speech.audio.done", "usage": usage})

    def error(self, error: HttpError) -> bytes:
        return b"event: error\n" + _event({"type": "error", **error.body()})


def _event(data: Mapping[str, Any]) -> bytes:
    return b"data: %b\n\n" % json.dumps(data).encode()
