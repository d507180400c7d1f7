"""The body of an answer as samples, as it arrives: WAV, or bare PCM. Whatever it claims, little of it is ever held."""

import math
import struct
from array import array
from typing import Protocol

from fishs2_daemon.engines.remote.errors import BrokenBody

#: Of everything before the first sample; some programs put their name and more there.
_HEAD_BYTES = 64 * 1024

#: From here on a length stands for "until the end", which programs write in several ways.
_OPEN_LENGTH = 0x7FFF0000

#: In Hz: what a telephone has, and what nobody can hear a difference to.
_LOWEST_RATE, _HIGHEST_RATE = 8_000, 192_000

#: OpenAI's pcm has no head, so that its rate is part of the contract.
PCM_RATE = 24_000

#: "RIFF", a length, "WAVE".
_RIFF_BYTES = 12

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_SAMPLE_BYTES = 2


class Body(Protocol):
    """`sample_rate` is 0 until it is known; `is_over` says that nothing more can follow. Raises `BrokenBody`."""

    @property
    def sample_rate(self) -> int: ...

    @property
    def is_over(self) -> bool: ...

    def feed(self, data: bytes) -> bytes:
        """The next signed 16-bit mono samples, often none."""

    def end(self) -> None:
        """Whether that was all: raises where something is missing."""


class PcmBody:
    """Signed 16-bit mono samples without a head."""

    is_over = False

    def __init__(self, sample_rate: int = PCM_RATE) -> None:
        self.sample_rate = _checked_rate(sample_rate)
        self._frames = _Frames(_PCM, 1)

    def feed(self, data: bytes) -> bytes:
        return self._frames.feed(data)

    def end(self) -> None:
        pass  # a stream without a length is whole wherever it ends


class WavBody:
    """RIFF/WAVE of one or two channels, in 16-bit integers or 32-bit floats, of a known length or of none."""

    is_over = False

    def __init__(self) -> None:
        self.sample_rate = 0
        self._head = bytearray()
        self._at = _RIFF_BYTES
        self._format = b""
        self._frames: _Frames | None = None
        self._left: int | None = None

    def feed(self, data: bytes) -> bytes:
        if self._frames is None:
            self._head += data
            start = self._read_head()
            if self._frames is None:
                return b""
            data = bytes(self._head[start:])
            self._head.clear()
        if self._left is not None:
            data = data[: self._left]  # what stands behind the samples is no sound
            self._left -= len(data)
        return self._frames.feed(data)

    def end(self) -> None:
        if self._frames is None:
            raise BrokenBody("it ended within its WAV head")
        if self._left:
            raise BrokenBody(f"it ended {self._left} bytes early")

    def _read_head(self) -> int:
        """Where the samples start, once everything before them has come."""
        head = self._head
        if not b"RIFF".startswith(bytes(head[:4])) or not b"WAVE".startswith(bytes(head[8:_RIFF_BYTES])):
            raise BrokenBody("it is no WAV")
        while len(head) >= self._at + 8:
            name, length = struct.unpack_from("<4sI", head, self._at)
            start = self._at + 8
            if name == b"data":
                self._begin(self._format, length)
                return start
            following = start + length + length % 2
            if following > _HEAD_BYTES:
                raise BrokenBody(f"its WAV head has more than {_HEAD_BYTES} bytes")
            if len(head) < following:
                break
            if name == b"fmt ":
                self._format = bytes(head[start : start + length])
            self._at = following
        return 0

    def _begin(self, format_: bytes, length: int) -> None:
        if len(format_) < 16:
            raise BrokenBody("its WAV head does not say what it holds")
        kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", format_)
        if kind == _EXTENSIBLE and len(format_) >= 26:
            (kind,) = struct.unpack_from("<H", format_, 24)
        if (kind, bits) not in ((_PCM, 16), (_FLOAT, 32)) or channels not in (1, 2):
            raise BrokenBody(
                f"its WAV has format {kind}, {bits} bits, {channels} channels; read are 16-bit PCM and 32-bit floats "
                "of one or two channels"
            )
        self.sample_rate = _checked_rate(rate)
        self._frames = _Frames(kind, channels)
        self._left = length if 0 < length < _OPEN_LENGTH else None


class _Frames:
    """Whole frames of interleaved samples as 16-bit mono; the beginning of one that is not yet whole is kept."""

    def __init__(self, kind: int, channels: int) -> None:
        self._kind = kind
        self._channels = channels
        self._frame_bytes = channels * (4 if kind == _FLOAT else _SAMPLE_BYTES)
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        if self._rest:
            data = self._rest + data
        whole = len(data) - len(data) % self._frame_bytes
        self._rest, data = data[whole:], data[:whole]
        if self._kind == _PCM and self._channels == 1:
            return data
        values = [_integer(value) for value in array("f", data)] if self._kind == _FLOAT else array("h", data)
        if self._channels == 2:
            values = [(left + right) // 2 for left, right in zip(values[::2], values[1::2], strict=True)]
        return array("h", values).tobytes()


def _checked_rate(rate: int) -> int:
    if not _LOWEST_RATE <= rate <= _HIGHEST_RATE:
        raise BrokenBody(f"its sample rate is {rate} Hz; read are {_LOWEST_RATE} to {_HIGHEST_RATE} Hz")
    return rate


def _integer(value: float) -> int:
    if not math.isfinite(value):
        raise BrokenBody("it holds samples that are no numbers")
    return max(-32768, min(32767, round(value * 32767)))
