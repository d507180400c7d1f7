"""Codes to latents and back: one codebook after another, each for what those before it left over (7.2, 7.3)."""

from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.codec.passes import Pass
from fishs2_daemon.engines.s2.ggml import DType, Tensor
from fishs2_daemon.engines.s2.layout import codebook_name
from fishs2_daemon.engines.s2.model import Model


class Codebooks:
    """Looks latents up: every codebook's rows, projected to the latent width, lie in one table."""

    def __init__(self, model: Model) -> None:
        self._sizes = np.array(model.config.codec.codebook_sizes)
        self._starts = np.array([0, *accumulate(model.config.codec.codebook_sizes)][:-1])
        tables = np.concatenate([_projected(model, index) for index in range(len(self._sizes))])
        self._table = model.upload({"codebooks": tables})["codebooks"]  # [latent, rows of all codebooks]

    def rows(self, codes: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int32]:
        """The table's rows for codes `[codebooks, n]`: beyond a codebook's end its last one, below zero its first."""
        clamped = np.clip(codes, 0, self._sizes[:, None] - 1)
        return np.asarray(clamped + self._starts[:, None], np.int32)

    def __call__(self, p: Pass) -> Tensor:
        """[latent, frames * streams] for the input `rows`: all frames of the first codebook, then of the next one."""
        g, columns = p.g, p.frames * p.streams
        found = g.get_rows(self._table, g.input("rows", DType.I32, columns * len(self._sizes)))
        total = g.narrow(found, 1, 0, columns)
        for index in range(1, len(self._sizes)):
            total = g.add(total, g.narrow(found, 1, index * columns, columns))
        return total


class CodeSearch:
    """Finds codes: in every codebook the row that points most nearly the way of what is left."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._names = [codebook_name(index) for index in range(len(model.config.codec.codebook_sizes))]
        arrays: dict[str, npt.NDArray[np.float32]] = {}
        for name in self._names:
            rows = model.values(f"{name}.codebook.weight")  # [size, codebook_width]
            arrays[f"{name}.rows"] = rows
            arrays[f"{name}.directions"] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        self._constants = model.upload(arrays)

    def __call__(self, p: Pass, z: Tensor) -> list[Tensor]:
        """[latent, n] -> i32 [n] of each codebook. Of cosines only the order counts, so `z` keeps its length."""
        g, codes = p.g, []
        for name in self._names:
            seen = self._project(p, f"{name}.in_proj", z)
            codes.append(g.argmax(p.linear(self._constants[f"{name}.directions"], seen)))
            rows = g.get_rows(self._constants[f"{name}.rows"], codes[-1])
            z = g.sub(z, self._project(p, f"{name}.out_proj", rows))
        return codes

    def _project(self, p: Pass, name: str, x: Tensor) -> Tensor:
        weight, bias = self._model.tensor(f"{name}.weight"), self._model.tensor(f"{name}.bias")
        matrix = p.g.reshape(weight, weight.shape[1], weight.shape[2])  # [inputs, outputs], of a convolution with k = 1
        return p.linear(matrix, x, bias)


def _projected(model: Model, index: int) -> npt.NDArray[np.float32]:
    """`[size, latent]`"""
    name = codebook_name(index)
    rows, weight = model.values(f"{name}.codebook.weight"), model.values(f"{name}.out_proj.weight")[:, :, 0]
    # A damaged file's numbers may be none; the sound is damaged then, and nothing else is.
    with np.errstate(invalid="ignore", over="ignore"):
        return rows @ weight.T + model.values(f"{name}.out_proj.bias")
