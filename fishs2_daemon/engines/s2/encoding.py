"""Sound to codes, now and then: a clip is encoded once, ever."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.codec import Encoder
from fishs2_daemon.engines.s2.ggml import Backend
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.placement import encoder_skips
from fishs2_daemon.errors import EngineError

_log = logging.getLogger(__name__)


#: The encoder, its graph, and workspaces that CUDA takes by itself, and ends the process without.
_ROOM = 1536 << 20


class ClipEncoder:
    """Loads the codec's encoder when a clip comes, and gives its memory back behind it: half a gigabyte for S2 Pro.

    The backends are its own: nobody else may use them. One that has not enough memory leaves it to the next.
    """

    def __init__(self, path: Path, backends: Sequence[Backend]) -> None:
        self._path = path
        self._backends = backends

    def encode(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
        """As `Encoder.encode`."""
        *others, last = self._backends
        for backend in others:
            try:
                return self._encode(backend, samples)
            except EngineError as error:
                _log.warning("a clip is encoded on %s, as %s failed: %s", last.device, backend.device, error)
        return self._encode(last, samples)

    def _encode(self, backend: Backend, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
        if backend.device != "cpu" and backend.memory().free_bytes < _ROOM:
            raise EngineError("there is not enough memory")
        with Model.load(self._path, backend, skip=encoder_skips) as model, Encoder(model) as encoder:
            return encoder.encode(samples)
