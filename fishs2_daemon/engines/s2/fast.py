"""The fast transformer: the other codes of one frame, nine sweeps over its weights for ten codes (specification, 3).

| sweep    | 1               | 2     | ... | K - 1       |
| position | 0 and 1         | 2     | ... | K - 1       |
| input    | slow state, c0  | c1    | ... | c[K - 2]    |
| logits   | of c1           | of c2 | ... | of c[K - 1] |

Position 0 has no logits of interest and c0 is known by then, so that both go in one pass.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.ggml import Arena, DType, Graph, GraphBuilder, Tensor
from fishs2_daemon.engines.s2.graphs import Graphs
from fishs2_daemon.engines.s2.kv import KvCache
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.rope import Rope, RopeKind
from fishs2_daemon.engines.s2.transformer import Pass, Transformer

#: Makes codes i32 [batch] of codebook 1 and on from its logits [padded(codebook_size), batch].
Choose = Callable[[int, Tensor], Tensor]

#: CUDA reads masks in pieces of 16 bytes, and rows of this many cells start on such.
_CELLS = 16
_TRACE_GRAPHS = 2


class FastAR:
    """For batches of up to `slots` sequences. It carries nothing from frame to frame."""

    def __init__(self, model: Model, *, slots: int, rope: RopeKind, kv_type: DType) -> None:
        config, self._codebooks = model.config.fast, model.config.slow.codebooks
        cells = -(-self._codebooks // _CELLS) * _CELLS
        self._model, self._slots, self._config = model, slots, config
        self.cache = KvCache(model.backend, config, slots=slots, cells=cells, dtype=kv_type)
        self._rope = Rope(model, config, rope, self._codebooks)
        self._layers = Transformer(model, "fast_", config, self._rope, self.cache)
        self._graphs = Graphs(model.backend, _TRACE_GRAPHS)
        slot, at = np.arange(slots), np.arange(self._codebooks)[:, None]
        self._constants = model.upload(
            {
                "first positions": np.tile(np.arange(2, dtype=np.int32), slots),  # [slots * 2]
                "first rows": (slot[:, None] * cells + np.arange(2)).astype(np.int64).ravel(),  # [slots * 2]
                "first mask": np.where(np.tri(2, _CELLS, dtype=bool), 0, -np.inf).astype(np.float16),  # [2, _CELLS]
                "positions": np.broadcast_to(at, (self._codebooks, slots)).astype(np.int32),
                "rows": (slot * cells + at).astype(np.int64),  # [K, slots]
            }
        )

    def sweep(self, g: GraphBuilder, slow_state: Tensor, code0: Tensor, choose: Choose) -> list[Tensor]:
        """Codes 1 and on, each i32 [batch], after code 0 i32 [batch] and the slow state [slow width, batch]."""
        config, batch, codes = self._config, code0.shape[0], [code0]
        for codebook in range(1, self._codebooks):
            x = g.get_rows(self._model.tensor("fast_embeddings.weight"), codes[-1])  # [width, batch]
            if codebook == 1:
                state = g.reshape(self._project(g, slow_state), config.width, 1, batch)
                x = g.concat(state, g.reshape(x, config.width, 1, batch), 1)
                x = g.reshape(x, config.width, 2 * batch)
                x = self._layers(g, x, self._first_pass(g, batch))
                row = x.strides[1]
                x = g.view(x, (config.width, batch), (2 * row,), row)
            else:
                x = self._layers(g, x, self._pass(g, batch, codebook))
            logits = g.mul_mat(self._model.tensor("fast_head"), self._layers.norm(g, x, "norm"), precise=True)
            codes.append(choose(codebook, logits))
        return codes[1:]

    def logits(self, slow_state: npt.NDArray[np.float32], codes: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """Of codes 1 and on, given all: `[n, slow width]` and `[n, K]` to `[n, K - 1, codebook_size]`.

        For tests, and to compare engines.
        """
        found = []
        for start in range(0, len(codes), self._slots):
            given = codes[start : start + self._slots]
            batch = len(given)
            graph = self._graphs.get(batch, partial(self._build, batch))
            graph.inputs["state"][:] = slow_state[start : start + batch]
            graph.inputs["codes"][:] = given.T
            read = graph.run()
            found.append(np.stack([read[f"logits {i}"][0, 0] for i in range(1, self._codebooks)], axis=1))
        return np.concatenate(found)[:, :, : self._config.codebook_size]

    def close(self) -> None:
        self._graphs.close()
        self.cache.close()

    def _build(self, batch: int, arena: Arena) -> Graph:
        g = GraphBuilder(self._model.backend, f"fast logits of {batch}")
        state = g.input("state", DType.F32, self._model.config.slow.width, batch)
        codes = g.input("codes", DType.I32, batch, self._codebooks)

        def given(codebook: int, logits: Tensor) -> Tensor:
            g.output(f"logits {codebook}", logits)
            return g.view(codes, (batch,), (), codebook * codes.strides[1])

        self.sweep(g, state, g.view(codes, (batch,)), given)
        return g.build(arena)

    def _project(self, g: GraphBuilder, x: Tensor) -> Tensor:
        if not self._config.project_in:
            return x
        y = g.mul_mat(self._model.tensor("fast_project_in.weight"), x, precise=True)
        return g.add(y, self._model.tensor("fast_project_in.bias")) if self._config.project_in_bias else y

    def _first_pass(self, g: GraphBuilder, batch: int) -> Pass:
        positions, rows = (g.view(self._constants[f"first {name}"], (2 * batch,)) for name in ("positions", "rows"))
        rotation = self._rope.run(g, 0, 2, positions)
        mask = self._constants["first mask"]
        return Pass(batch=batch, tokens=2, first=0, cells=_CELLS, rows=rows, rotation=rotation, mask=mask)

    def _pass(self, g: GraphBuilder, batch: int, position: int) -> Pass:
        positions, rows = (
            g.view(self._constants[name], (batch,), (), position * self._constants[name].strides[1])
            for name in ("positions", "rows")
        )
        rotation = self._rope.run(g, position, 1, positions)
        return Pass(batch=batch, tokens=1, first=0, cells=position + 1, rows=rows, rotation=rotation, mask=None)
