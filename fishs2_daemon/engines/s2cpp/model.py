"""The two files that libs2 loads, and what it computes on."""

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fishs2_daemon.engines.base import EngineOptions
from fishs2_daemon.engines.s2cpp.library import S2Library
from fishs2_daemon.errors import EngineError

_log = logging.getLogger(__name__)

_MAGIC = b"GGUF"

_BACKEND_TYPES = {"cpu": -1, "vulkan": 0, "cuda": 1, "metal": 2}

_NO_GPU = -1


@dataclass(frozen=True, slots=True)
class ModelFiles:
    model: Path
    tokenizer: Path

    def check(self) -> None:
        """libs2 may end the process over files that are none. Raises `EngineError`."""
        with _open(self.model, "FISHS2_MODEL_PATH") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise EngineError(f"FISHS2_MODEL_PATH={self.model}: this is no GGUF file")
        with _open(self.tokenizer, "FISHS2_TOKENIZER_PATH") as file:
            try:
                json.load(file)
            except (ValueError, RecursionError):
                raise EngineError(f"FISHS2_TOKENIZER_PATH={self.tokenizer}: this is no JSON file") from None


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


def _open(path: Path, setting: str) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise EngineError(f"{setting}={path}: cannot be read: {error.strerror}") from None
