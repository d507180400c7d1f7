"""Which kind of body an answer has; and audio in server-sent events.

OpenAI's API sends it so, and SGLang-Omni did in its first releases:

data: {"type": "speech.audio.delta", "audio": "<base64>"}            data: {"object": "audio.speech.chunk",
data: {"type": "speech.audio.done"}                                         "audio": {"data": "<base64>"}, ...}
"""

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from fishs2_daemon.engines.remote.body import PCM_RATE, Body, PcmBody, WavBody
from fishs2_daemon.engines.remote.errors import BrokenBody, message_of

#: A minute of 16-bit audio at 44.1 kHz in base64, and as much again: some servers send all in one.
_EVENT_BYTES = 16 * 1024 * 1024


def body_of(headers: Mapping[str, str], asked_format: str) -> Body:
    """For an answer with these headers (lower-case names) to a request for "wav" or "pcm"."""
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise BrokenBody("it is compressed, which nobody asked for")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "text/event-stream":
        return SseBody(_plain_body(asked_format, headers))
    if kind in ("audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave"):
        return WavBody()
    if kind in ("audio/pcm", "audio/x-pcm"):
        return _plain_body("pcm", headers)
    if kind in ("", "application/octet-stream"):
        return _plain_body(asked_format, headers)
    raise BrokenBody(f"it is {kind[:60]!r}, not {asked_format}")


class SseBody:
    """`plain` reads what the events hold: one stream that was cut anywhere. An event that starts with a WAV head starts
    a file of its own."""

    def __init__(self, plain: Body) -> None:
        self.is_over = False
        self._body = plain
        self._has_begun = False
        self._sample_rate = 0
        self._line = bytearray()
        self._searched = 0
        self._after_return = False
        self._data = bytearray()

    @property
    def sample_rate(self) -> int:
        return self._sample_rate or self._body.sample_rate

    def feed(self, data: bytes) -> bytes:
        if self._after_return and data.startswith(b"\n"):
            data = data[1:]
            self._after_return = False
        if data:
            self._after_return = data.endswith(b"\r")
        self._line += data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        samples = []
        start = 0
        while not self.is_over and (end := self._line.find(b"\n", max(self._searched, start))) >= 0:
            samples.append(self._take(bytes(self._line[start:end])))
            start = end + 1
        del self._line[:start]
        self._searched = len(self._line)
        if len(self._line) + len(self._data) > _EVENT_BYTES:
            raise BrokenBody(f"it sent an event of more than {_EVENT_BYTES} bytes")
        return b"".join(samples)

    def end(self) -> None:
        if not self.is_over:
            raise BrokenBody("it ended without its last event")

    def _take(self, line: bytes) -> bytes:
        """The samples of the event that this line ends, if it ends one."""
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data += b"\n" * bool(self._data) + value.removeprefix(b" ")
            return b""
        data = bytes(self._data)
        self._data.clear()
        return self._samples(data) if data else b""

    def _samples(self, data: bytes) -> bytes:
        if data.strip() == b"[DONE]":
            return self._over()
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            raise BrokenBody("it sent an event that is no JSON") from None
        if not isinstance(event, dict):
            raise BrokenBody("it sent an event that is no JSON object")
        if event.get("type") == "error" or event.get("error"):
            raise BrokenBody(message_of(event) or "it sent an error without a word")
        audio, rate = _audio_of(event)
        samples = self._decoded(audio, rate) if audio else b""
        if event.get("type") == "speech.audio.done" or event.get("finish_reason"):
            self._over()
        return samples

    def _over(self) -> bytes:
        self._body.end()
        self.is_over = True
        return b""

    def _decoded(self, audio: str, rate: object) -> bytes:
        try:
            payload = base64.b64decode(audio, validate=True)
        except (binascii.Error, ValueError):
            raise BrokenBody("it sent audio that is no base64") from None
        if payload.startswith(b"RIFF") and payload[8:12] == b"WAVE":
            if self._has_begun:
                self._body.end()
            self._body = WavBody()
        elif isinstance(self._body, PcmBody) and isinstance(rate, int) and rate != self._body.sample_rate:
            self._body = PcmBody(rate)
        self._has_begun = True
        samples = self._body.feed(payload)
        if self._sample_rate and self._body.sample_rate not in (0, self._sample_rate):
            raise BrokenBody("its sample rate changed midway")
        self._sample_rate = self._body.sample_rate or self._sample_rate
        return samples


def _audio_of(event: dict[str, Any]) -> tuple[str, object]:
    """The base64 of an event, and the rate where it tells it."""
    if event.get("type") != "speech.audio.delta" and event.get("object") != "audio.speech.chunk":
        return "", None
    told = event.get("audio")
    audio, rate = (told.get("data"), told.get("sample_rate")) if isinstance(told, dict) else (told, None)
    return (audio, rate) if isinstance(audio, str) else ("", None)


def _plain_body(format_: str, headers: Mapping[str, str]) -> Body:
    """Without events around it."""
    if format_ != "pcm":
        return WavBody()
    if (headers.get("x-channels", "1"), headers.get("x-bit-depth", "16")) != ("1", "16"):
        raise BrokenBody("it is not 16-bit mono")
    rate = headers.get("x-sample-rate", "").strip() or str(PCM_RATE)
    if not (rate.isascii() and rate.isdigit() and len(rate) <= 9):
        raise BrokenBody(f"its sample rate is {rate[:60]!r}")
    return PcmBody(int(rate))
