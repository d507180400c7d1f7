"""Layers of the slow transformer in a row, on one device, with the keys and values of their slots."""

from dataclasses import replace
from math import gcd

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.ggml import DType, Graph, GraphBuilder, Tensor
from fishs2_daemon.engines.s2.kv import KvCache
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.rope import Rope, RopeKind
from fishs2_daemon.engines.s2.sizes import CELLS, cells_of
from fishs2_daemon.engines.s2.transformer import Pass, Transformer

#: Query heads of one key head, times rows of the mask, that CUDA's attention looks at together.
_TILE = 8


def mask_rows(heads: int, kv_heads: int) -> int:
    """That a mask of one token each of several sequences has to have; other GPUs' kernels look at two."""
    return max(2, _TILE // gcd(_TILE, heads // kv_heads))


class Stack:
    """Those layers that `model` holds: all of them, or one side of a split."""

    def __init__(self, model: Model, *, slots: int, context: int, rope: RopeKind, kv_type: DType) -> None:
        config = model.config.slow
        self.layers = model.slow_layers
        self._context = context
        self._mask_rows = mask_rows(config.heads, config.kv_heads)
        #: A slot's last cell is no position: what nobody shall see is written there.
        self.cache = KvCache(
            model.backend,
            replace(config, layers=len(self.layers)),
            slots=slots,
            cells=cells_of(context),
            dtype=kv_type,
        )
        self._rope = Rope(model, config, rope, context)
        self.transformer = Transformer(model, "", config, self._rope, self.cache, self.layers)

    def __call__(self, g: GraphBuilder, x: Tensor, *, first: int, batch: int, tokens: int, cells: int) -> Tensor:
        """[width, tokens * batch] -> the same: so many tokens of each of `batch` slots from `first` on.

        Adds the inputs that `place` fills; `fill` takes an input `x`, too.
        """
        positions = g.input("positions", DType.I32, tokens * batch)
        at = Pass(
            batch=batch,
            tokens=tokens,
            first=first,
            cells=cells,
            rows=g.input("rows", DType.I64, tokens * batch),
            rotation=self._rope.gather(g, positions),
            mask=g.input("mask", DType.F16, cells, tokens if batch == 1 else max(self._mask_rows, tokens), 1, batch),
        )
        return self.transformer(g, x, at)

    def place(self, graph: Graph, index: int, slot: int, position: int | None) -> None:
        """Tell a graph of one token each where sequence `index` of its batch is; None is nowhere: it sees one cell of
        anything."""
        inputs, cells = graph.inputs, self.cache.cells
        inputs["rows"][index] = slot * cells + (cells - 1 if position is None else position)
        inputs["positions"][index] = position or 0
        inputs["mask"][index, ..., : (position or 0) + 1] = 0
        inputs["mask"][index, ..., (position or 0) + 1 :] = -np.inf

    def move_on(self, graph: Graph, index: int, slot: int, position: int) -> None:
        """As `place`, where the sequence was at the position before when this graph was last told."""
        inputs = graph.inputs
        inputs["rows"][index] = slot * self.cache.cells + position
        inputs["positions"][index] = position
        inputs["mask"][index, 0, :, position] = 0

    def fill(self, graph: Graph, slot: int, start: int, x: npt.NDArray[np.float32]) -> None:
        """Tell a graph of one sequence that `x` [n, width] are the slot's tokens from `start` on, others nobody's."""
        inputs, whole, n = graph.inputs, self.cache.cells, len(x)
        tokens, cells = inputs["mask"].shape[-2:]
        inputs["x"][:n] = x
        inputs["x"][n:] = 0
        inputs["rows"][:] = (slot + 1) * whole - 1
        inputs["rows"][:n] = slot * whole + start + np.arange(n)
        inputs["positions"][:] = np.minimum(start + np.arange(tokens), self._context - 1)
        seen = np.arange(cells) <= np.minimum(start + np.arange(tokens), start + n - 1)[:, None]
        inputs["mask"][0, 0] = np.where(seen, np.float16(0), np.float16(-np.inf))

    def cells_for(self, positions: int) -> int:
        """Cells that a graph must look at: doubled from step to step, so that there are few graphs."""
        cells = CELLS
        while cells < positions:
            cells *= 2
        return min(cells, self.cache.cells)

    def cell_counts(self, *, largest_first: bool = False) -> list[int]:
        """All that `cells_for` may say."""
        counts = {self.cells_for(min(CELLS << n, self._context)) for n in range(self.cache.cells.bit_length())}
        return sorted(counts, reverse=largest_first)
