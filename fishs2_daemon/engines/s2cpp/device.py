"""What libs2 computes on."""

import logging
import sys
from dataclasses import dataclass

from fishs2_daemon.engines.base import EngineOptions
from fishs2_daemon.engines.s2cpp.library import S2Library
from fishs2_daemon.errors import EngineError

_log = logging.getLogger(__name__)

_BACKEND_TYPES = {"cpu": -1, "vulkan": 0, "cuda": 1, "metal": 2}

_NO_GPU = -1


@dataclass(frozen=True, slots=True)
class Device:
    """`gpu_layers` of the model are computed on the GPU `number`; -1: all."""

    backend: str
    number: int = 0
    gpu_layers: int = -1

    @property
    def is_gpu(self) -> bool:
        return self.backend != "cpu"

    @property
    def backend_type(self) -> int:
        """libs2's number of the backend."""
        return _BACKEND_TYPES[self.backend]

    @property
    def gpu_device(self) -> int:
        return self.number if self.is_gpu else _NO_GPU

    def __str__(self) -> str:
        return f"{self.backend}:{self.number}" if self.is_gpu else self.backend


def devices(options: EngineOptions, library: S2Library) -> list[Device]:
    """What to try, in this order: the one that is set, or with `auto` the GPUs' backends that were loaded with libs2,
    and the processor at last."""
    if options.backend != "auto":
        if options.backend not in _BACKEND_TYPES:
            raise EngineError(f"FISHS2_BACKEND={options.backend}; allowed: auto, {', '.join(_BACKEND_TYPES)}")
        if options.backend != "cpu" and options.backend not in library.backends:
            # It may be a part of libs2 itself. Where it is not, the processor computes without a word.
            backend = options.backend
            _log.warning("FISHS2_BACKEND=%s: there is no ggml-%s to load; is it a part of libs2?", backend, backend)
        return [_device(options.backend, options)]
    # Every Mac has Metal, often in libs2 itself.
    found = library.backends | ({"metal"} if sys.platform == "darwin" else set())
    return [_device(kind, options) for kind in ("cuda", "vulkan", "metal", "cpu") if kind in found or kind == "cpu"]


def _device(backend: str, options: EngineOptions) -> Device:
    if backend == "cpu":
        return Device(backend)
    return Device(backend, options.gpu_device, options.n_gpu_layers)
