"""The randomness of a sequence: Gumbel noise from its seed, by frame, draw and rank."""

import numpy as np
import numpy.typing as npt

_LEAST = np.float32(np.finfo(np.float32).tiny)


class Noise:
    """The largest of (log probability + noise) is a draw by these probabilities, whatever else is in the batch.

    A frame's draws are its token, the token once more, and codes 1 and on; each has noise for `ranks` candidates,
    the likeliest first.
    """

    def __init__(self, seed: int, *, codebooks: int, ranks: int) -> None:
        self._random = np.random.Generator(np.random.SFC64(seed))
        self._shape = (codebooks + 1, ranks)

    def frame(self) -> npt.NDArray[np.float32]:
        """The next frame's. `[K + 1, ranks]`"""
        race = self._random.standard_exponential(self._shape, np.float32)
        return -np.log(np.maximum(race, _LEAST))
