"""The slow transformer's first layers, apart from the others: on the processor, where a GPU has no room for all.

    columns ─ embedded ─ first layers ─┼─ other layers ─ head ─ token ─ fast transformer ─ codes
       ↑            processor                                GPU                             │
       └─────────────────────────────────────────────────────────────────────────────────────┘

What goes up is one column of the width of the model for each token, what comes down are the codes. So the next frame
cannot be started before the one before it is read.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.ggml import Arena, DType, Graph, GraphBuilder
from fishs2_daemon.engines.s2.graphs import Graphs
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.rope import RopeKind
from fishs2_daemon.engines.s2.stack import Stack

Floats = npt.NDArray[np.float32]

#: Those of frames, which are used all the time, and of as many prompts as there is room for; they share their memory.
_GRAPHS = 256


class LowerLayers:
    """Those of `model`, which was loaded with `lower_skips`. What is asked for is computed when the call returns."""

    def __init__(self, model: Model, *, slots: int, context: int, rope: RopeKind, kv_type: DType) -> None:
        self.stack = Stack(model, slots=slots, context=context, rope=rope, kv_type=kv_type)
        self._model = model
        self._graphs = Graphs(model.backend, _GRAPHS, shares_values=True)

    def prefill(self, slot: int, x: Floats, start: int, tokens: int) -> Floats:
        """`x` [n, width] is a slot's from position `start` on -> the same, by a graph of `tokens`."""
        graph = self.build(slot, 1, tokens, self.stack.cells_for(start + len(x)))
        self.stack.fill(graph, slot, start, x)
        return self._run(graph)[: len(x)]

    def step(self, first: int, x: Floats, positions: Sequence[int | None]) -> Floats:
        """One token [batch, width] of each slot from `first` on -> the same. One whose position is None nobody sees."""
        most = max(position or 0 for position in positions) + 1
        graph = self.build(first, len(x), 1, self.stack.cells_for(most))
        for index, position in enumerate(positions):
            self.stack.place(graph, index, first + index, position)
        graph.inputs["x"][...] = x
        return self._run(graph)

    def build(self, first: int, batch: int, tokens: int, cells: int) -> Graph:
        """The graph for so many tokens of each of `batch` slots from `first` on."""
        key = (first, batch, tokens, cells)
        return self._graphs.get(key, lambda arena: self._build(first, batch, tokens, cells, arena))

    @property
    def n_bytes(self) -> int:
        """Memory of keys, values and graphs."""
        return self.stack.cache.n_bytes + self._graphs.n_bytes

    def close(self) -> None:
        self._graphs.close()
        self.stack.cache.close()

    def _run(self, graph: Graph) -> Floats:
        graph.compute()
        found: Floats = graph.read("x")[0, 0]
        return found

    def _build(self, first: int, batch: int, tokens: int, cells: int, arena: Arena) -> Graph:
        g = GraphBuilder(self._model.backend, f"first layers of {batch} x {tokens} tokens")
        x = g.input("x", DType.F32, self._model.config.slow.width, tokens * batch)
        g.output("x", self.stack(g, x, first=first, batch=batch, tokens=tokens, cells=cells))
        return g.build(arena)
