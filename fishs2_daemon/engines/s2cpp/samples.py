"""What libs2's sound is made of."""

from typing import Any

import numpy as np

#: Of S2 Pro's codec; libs2 has no function that tells it.
SAMPLE_RATE = 44100

#: A sample of the PCM that libs2 streams.
SAMPLE_BYTES = 2

FRAME_SAMPLES = 2048


def pcm16(wave: "np.ndarray[Any, np.dtype[np.float32]]") -> bytes:
    """As libs2 does it where it streams: times 32768, clamped, and cut towards zero."""
    scaled = np.clip(np.nan_to_num(wave), -1, 1) * 32768.0
    samples: bytes = np.minimum(scaled, 32767).astype("<i2").tobytes()
    return samples
