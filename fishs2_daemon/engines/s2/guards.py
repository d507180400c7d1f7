"""When to stop a model that does not stop by itself.

Servers of such models shipped minutes of murmur after a short text, loops on one frame, and long silent tails; each
guard answers one of these.
"""

import numpy as np
import numpy.typing as npt

#: Speech needs about 5.2 frames a text token (measured on English by others); three times that is beyond any reading.
_FRAMES_PER_TOKEN = 3 * 5.2

#: Two seconds: breath, laughter and pauses of a text of a word or two.
_FRAMES_AT_LEAST = 43

#: A frame lasts 46 ms, and no sound stays the same in all its codes for this many.
_SAME_FRAMES = 8

_SILENCE_DBFS = -55.0
_SILENCE_S = 2.5


def frame_budget(text_tokens: int, most: int) -> int:
    """Frames that a text of so many tokens may take, `most` at the most."""
    return min(most, int(_FRAMES_PER_TOKEN * text_tokens) + _FRAMES_AT_LEAST)


class Guard:
    """Sees every frame of an answer; `is_stuck` says that nothing more will come of it."""

    def __init__(self, sample_rate: int) -> None:
        self.is_stuck = False
        self._sample_rate = sample_rate
        self._last: bytes = b""
        self._same = 0
        self._silence_s = 0.0

    def see(self, codes: npt.NDArray[np.integer], samples: npt.NDArray[np.float32]) -> None:
        """`codes` [K] and `samples` of one frame."""
        frame = codes.tobytes()
        self._same = self._same + 1 if frame == self._last else 0
        self._last = frame
        level = float(np.sqrt(np.mean(np.square(samples)))) if len(samples) else 0.0
        quiet = level < 10 ** (_SILENCE_DBFS / 20)
        self._silence_s = self._silence_s + len(samples) / self._sample_rate if quiet else 0.0
        self.is_stuck = self._same >= _SAME_FRAMES or self._silence_s > _SILENCE_S
