"""A model file as plain arrays (specification, section 1)."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.config import ModelConfig
from fishs2_daemon.engines.s2.ggml_type import GgmlType
from fishs2_daemon.engines.s2.gguf import GgufFile
from fishs2_daemon.engines.s2.layout import expected_tensors
from fishs2_daemon.engines.s2.model_file import read_config

Array = npt.NDArray[np.floating]
Codes = npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Model:
    """Tensors by their names in the file, in PyTorch's order: `[out, in]`, `[out, in / groups, kernel]`. All of them,
    and all that is computed with them, have the type `dtype`."""

    config: ModelConfig
    tensors: Mapping[str, Array]
    dtype: npt.DTypeLike

    def __getitem__(self, name: str) -> Array:
        return self.tensors[name]

    def get(self, name: str) -> Array | None:
        """For biases and norms that a model may lack."""
        return self.tensors.get(name)

    def array(self, values: npt.ArrayLike) -> Array:
        return np.asarray(values, self.dtype)


def load(path: str | os.PathLike[str], dtype: npt.DTypeLike = np.float64) -> Model:
    """Raises `ModelFileError` like the engine. Quantised tensors need the `gguf` package."""
    with GgufFile.open(path) as file:
        config = read_config(file)
        tensors = {
            # A shape without its trailing ones is allowed in a file, so the layout's shape is taken.
            name: _values(file, name).reshape(shape[::-1]).astype(dtype)
            for name, shape in expected_tensors(config)
        }
    return Model(config, tensors, dtype)


def _values(file: GgufFile, name: str) -> Array:
    info, data = file.tensors[name], file.data(name)
    match info.type:
        case GgmlType.F32:
            return data.view("<f4")
        case GgmlType.F16:
            return data.view("<f2")
        case GgmlType.BF16:  # the upper half of an F32
            return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    from gguf import GGMLQuantizationType, quants  # only files of quantised weights need it

    rows = data.reshape(prod(info.shape[1:]), -1)
    return quants.dequantize(rows, GGMLQuantizationType(int(info.type)))
