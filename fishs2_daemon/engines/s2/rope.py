"""Rotary embedding of queries and keys together: exact, or with tables rounded as in the official engines.

Neighbours are a pair: (a, b) becomes (a cos - b sin, b cos + a sin), that is

    x * [c0, c0, c1, c1, ...]  +  swapped(x) * [-s0, s0, -s1, s1, ...]

where swapping the pairs is a roll by one of rows of two.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.config import TransformerConfig
from fishs2_daemon.engines.s2.ggml import DType, GraphBuilder, Tensor
from fishs2_daemon.engines.s2.model import Model

#: "bf16": sines and cosines rounded to bfloat16, which the model was trained with. "f32": exact angles.
RopeKind = Literal["bf16", "f32"]


@dataclass(frozen=True, slots=True)
class Angles:
    """Exact ones: `positions` i32 of all tokens of a pass."""

    positions: Tensor


@dataclass(frozen=True, slots=True)
class Factors:
    """For each of the `n` tokens of every sequence of a pass, [2 * head_dim, n]: cosines, then sines."""

    n: int
    rows: Tensor


Rotation = Angles | Factors


class Rope:
    """Of one transformer, for positions below `n_positions`."""

    def __init__(self, model: Model, config: TransformerConfig, kind: RopeKind, n_positions: int) -> None:
        self._width, self._base = config.head_dim, config.rope_base
        self._table: Tensor | None = None
        if kind == "bf16":
            self._table = model.upload({"table": rounded_table(config, n_positions)})["table"]

    def gather(self, g: GraphBuilder, positions: Tensor) -> Rotation:
        """For tokens of any positions, i32 [n], all of them of one sequence, or each of its own."""
        if self._table is None:
            return Angles(positions)
        return Factors(positions.shape[0], g.get_rows(self._table, positions))

    def run(self, g: GraphBuilder, start: int, n: int, positions: Tensor) -> Rotation:
        """For tokens `start` to `start + n` of each sequence; `positions` i32 [n * sequences] says the same."""
        if self._table is None:
            return Angles(positions)
        return Factors(n, g.narrow(self._table, 1, start, n))

    def rotate(self, g: GraphBuilder, x: Tensor, heads: int, rotation: Rotation) -> Tensor:
        """The first `heads` heads of each column of contiguous `x` [.., tokens] -> [head_dim, heads, tokens].

        What lies behind them is swapped for nothing, which is cheaper than a copy without it.
        """
        width, columns = self._width, x.shape[1]
        if isinstance(rotation, Angles):
            return g.rope(self._heads(g, x, heads, columns, 1), rotation.positions, self._base)
        swapped = g.reshape(g.roll(g.reshape(x, 2, x.n_elements // 2), 1), *x.shape)
        n, row = rotation.n, rotation.rows.strides[1]
        cos, sin = (
            g.view(rotation.rows, (width, 1, n), (row, row), part * width * 4) for part in (0, 1)
        )  # [head_dim, 1, n]
        turned = g.add(
            g.mul(self._heads(g, x, heads, n, columns // n), cos),
            g.mul(self._heads(g, swapped, heads, n, columns // n), sin),
        )  # [head_dim, heads, n, sequences]
        return g.reshape(turned, width, heads, columns)

    def _heads(self, g: GraphBuilder, x: Tensor, heads: int, n: int, sequences: int) -> Tensor:
        row = x.strides[1]
        return g.view(x, (self._width, heads, n, sequences), (self._width * DType.F32.block_bytes, row, row * n))


def rounded_table(config: TransformerConfig, n_positions: int) -> npt.NDArray[np.float32]:
    """`[n_positions, 2 * head_dim]`: the cosine of each element's pair, then its sine, negative for the first.

    Angles are computed in F32, as the official engines do it: another rounding may fall on another bfloat16.
    """
    width = config.head_dim
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    frequencies = np.float32(1) / np.float32(config.rope_base) ** exponents
    angles = np.arange(n_positions, dtype=np.float32)[:, None] * frequencies  # [n_positions, head_dim / 2]
    cos, sin = _bf16(np.cos(angles)), _bf16(np.sin(angles))
    signed = np.stack([-sin, sin], axis=-1).reshape(n_positions, width)
    return np.concatenate([np.repeat(cos, 2, axis=1), signed], axis=1)


def _bf16(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """To the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
