"""The recordings that a voice is cloned from, as engines read them."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from fishs2_daemon.audio.decode import DecodeLimits, decode
from fishs2_daemon.errors import EngineError, RequestError
from fishs2_daemon.speech import Clip

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: Longer than any clip that a store takes.
LARGEST_BYTES = 256 << 20


def read(clip: Clip, most_bytes: int = LARGEST_BYTES) -> bytes:
    """The file as it is. Raises `EngineError` where it is gone, is too large, or is not the one that was meant."""
    path = Path(clip.path)
    try:
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise EngineError(f"{path.name}: cannot be read: {error.strerror}") from None
    if len(data) > most_bytes:
        raise EngineError(f"{path.name}: too large for a reference; at most {most_bytes} bytes")
    if hashlib.sha256(data).hexdigest() != clip.sha256:
        raise EngineError(f"{path.name}: the voice was changed in this moment; try again")
    return data


def samples(clip: Clip, sample_rate: int, limits: DecodeLimits) -> "npt.NDArray[np.float32]":
    """Mono at that rate. Raises `EngineError`, also where it is no recording."""
    try:
        return decode(read(clip), sample_rate=sample_rate, limits=limits, name=Path(clip.path).name).samples
    except RequestError as error:
        raise EngineError(str(error)) from None
