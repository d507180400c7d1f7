"""The randomness of a sequence: Gumbel noise from its seed, by frame, draw and rank."""

import numpy as np
import numpy.typing as npt

#: Frames whose noise is made in one go: most of the time that one takes is spent on calling numpy.
_AT_ONCE = 16

_LEAST = np.float32(np.finfo(np.float32).tiny)


class Noise:
    """The largest of (log probability + noise) is a draw by these probabilities, whatever else is in the batch.

    A frame's draws are its token, the token once more, and codes 1 and on; each has noise for `ranks` candidates,
    the likeliest first.
    """

    def __init__(self, seed: int, *, codebooks: int, ranks: int) -> None:
        self._random = np.random.Generator(np.random.SFC64(seed))
        self._shape = (_AT_ONCE, codebooks + 1, ranks)
        self._ready: list[npt.NDArray[np.float32]] = []

    def frame(self) -> npt.NDArray[np.float32]:
        """The next frame's. `[K + 1, ranks]`"""
        if not self._ready:
            race = self._random.standard_exponential(self._shape, np.float32)
            self._ready = list(-np.log(np.maximum(race, _LEAST)))[::-1]
        return self._ready.pop()
