"""Speech as server-sent events with the times of its text, as `/v1/tts/stream/with-timestamp` sends them.

    data: {"audio_base64": "<the asked format>", "content": "<the text>", "alignment": null, ...}
    data: {"audio_base64": "<the asked format>", "content": "", "alignment": null, ...}
    data: {"audio_base64": "", "content": "<the text>", "alignment": {"segments": [...], "audio_duration": 3.2}, ...}

The model does not tell when it says which word. What is known is when the whole text was said, and only at its end: so
the text is one chunk, and the last event has the one segment that is true.
"""

import base64
import json
from typing import Any

from adapters.fishaudio.errors import message_of
from adapters.openai.errors import HttpError


class TimestampEvents:
    """The events of one answer, which is spoken `speed` times as fast as the model does. A long text is not repeated
    in each of them: it is in the first and in the last."""

    content_type = "text/event-stream"

    def __init__(self, text: str, speed: float) -> None:
        self._text = text
        self._speed = speed
        self._has_begun = False

    def audio(self, data: bytes) -> bytes:
        content = "" if self._has_begun else self._text
        self._has_begun = True
        return _event(data, content, None)

    def end(self, duration_s: float) -> bytes:
        end_s = round(duration_s / self._speed, 3)
        segment = {"text": self._text, "start": 0.0, "end": end_s}
        return _event(b"", self._text, {"segments": [segment], "audio_duration": end_s})

    def error(self, error: HttpError) -> bytes:
        body = {"status": error.status, "message": message_of(error)}
        return b"event: error\ndata: %b\n\n" % json.dumps(body).encode()


def _event(data: bytes, content: str, alignment: dict[str, Any] | None) -> bytes:
    body = {
        "audio_base64": base64.b64encode(data).decode(),
        "content": content,
        "alignment": alignment,
        "chunk_seq": 0,
        "chunk_audio_offset_sec": 0.0,
    }
    return b"data: %b\n\n" % json.dumps(body).encode()
