"""What libs2's sound is made of, and the WAV file as which it streams it."""

import struct
from typing import Any

import numpy as np

from fishs2_daemon.errors import EngineError

#: Of S2 Pro's codec; libs2 has no function that tells it.
SAMPLE_RATE = 44100

#: A sample of the PCM that libs2 streams.
SAMPLE_BYTES = 2

FRAME_SAMPLES = 2048

_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")


def pcm16(wave: "np.ndarray[Any, np.dtype[np.float32]]") -> bytes:
    """As libs2 does it where it streams: times 32768, clamped, and cut towards zero."""
    scaled = np.clip(np.nan_to_num(wave), -1, 1) * 32768.0
    samples: bytes = np.minimum(scaled, 32767).astype("<i2").tobytes()
    return samples


class WavStream:
    """One answer's bytes, however they are cut: 44 bytes of header, then 16-bit mono PCM at `sample_rate`."""

    def __init__(self, sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self._head: bytearray | None = bytearray()
        self._odd = b""

    def feed(self, data: bytes) -> bytes:
        """The whole samples that came. Raises `EngineError` for another header."""
        if self._head is not None:
            self._head += data
            if len(self._head) < _HEADER.size:
                return b""
            self._check(_HEADER.unpack_from(self._head))
            data, self._head = bytes(self._head[_HEADER.size :]), None
        data = self._odd + data
        whole = len(data) - len(data) % SAMPLE_BYTES
        self._odd = data[whole:]
        return data[:whole]

    def _check(self, header: tuple[Any, ...]) -> None:
        riff, _, wave, fmt, _, kind, channels, rate, _, _, bits, data, _ = header
        if (riff, wave, fmt, data, kind) != (b"RIFF", b"WAVE", b"fmt ", b"data", 1):
            raise EngineError("libs2 streams something that does not begin as a WAV file of PCM")
        if (channels, rate, bits) != (1, self._sample_rate, 8 * SAMPLE_BYTES):
            found = f"{rate} Hz, {channels} channels, {bits} bit"
            raise EngineError(f"libs2 streams {found}; this engine takes {self._sample_rate} Hz, 1 channel, 16 bit")
