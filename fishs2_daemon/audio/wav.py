"""The 44 bytes in front of PCM."""

import struct

#: What stands for a length that nobody knows yet; readers take it for "until the end".
UNKNOWN = 0xFFFFFFFF

_PCM = 1
_MONO = 1
_SAMPLE_BYTES = 2


def header(sample_rate: int, data_bytes: int | None) -> bytes:
    """RIFF/WAVE header of signed 16-bit mono PCM; `data_bytes` is exact, or None for a stream of unknown length."""
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        UNKNOWN if data_bytes is None else 36 + data_bytes,
        b"WAVE",
        b"fmt ",
        16,
        _PCM,
        _MONO,
        sample_rate,
        sample_rate * _SAMPLE_BYTES,
        _SAMPLE_BYTES,
        8 * _SAMPLE_BYTES,
        b"data",
        UNKNOWN if data_bytes is None else data_bytes,
    )
