"""One frame for a batch of sequences, as one graph.

    input ─ slow step ─ logits ─ token ─ repeated? drawn again ─ fast sweeps ─ codes ─ embedded: the next input
      ↑                                                                                     │
      └──────────────────────────── stays on the device ────────────────────────────────────┘

Tokens are counted from the first semantic one, so that the end token's number is the size of the codebook.
"""

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.fast import FastAR
from fishs2_daemon.engines.s2.ggml import DType, Graph, GraphBuilder, Store, Tensor
from fishs2_daemon.engines.s2.graphs import Graphs
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.sampling import RAS_WINDOW, Rules, Sampler, replace_repeated
from fishs2_daemon.engines.s2.slow import SlowAR

#: Far from any token, for the first frame's, which may be repeated: the window begins behind it.
_NO_TOKEN = float(-(1 << 22))

_FRAME_GRAPHS = 32


class FrameState:
    """What every slot carries from frame to frame on the device. Its last row belongs to no slot: what the idle
    sequences of a batch leave goes there."""

    def __init__(self, model: Model, slots: int) -> None:
        self._store = Store(model.backend)
        self.inputs = self._store.new(DType.F32, model.config.slow.width, slots + 1)
        self.windows = self._store.new(DType.F32, RAS_WINDOW, slots + 1)
        self._store.allocate()
        # The official engines start from zeros, and count tokens from that of number 0.
        self._empty = np.full(RAS_WINDOW, -model.config.slow.semantic_begin, np.float32)

    def begin(self, slot: int, x: npt.NDArray[np.float32]) -> None:
        """A new sequence, whose next input is `x` [width]."""
        for tensor, row in ((self.inputs, x), (self.windows, self._empty)):
            self._store.write_bytes(tensor, np.ascontiguousarray(row), slot * tensor.strides[1])

    def close(self) -> None:
        self._store.close()


class FrameGraph:
    """Builds the graph of a batch when it is first asked for, and fills its inputs."""

    def __init__(
        self, model: Model, slow: SlowAR, fast: FastAR, token_sampler: Sampler, code_sampler: Sampler, state: FrameState
    ) -> None:
        self._model, self._slow, self._fast, self._state = model, slow, fast, state
        self._token_sampler, self._code_sampler = token_sampler, code_sampler
        self._graphs = Graphs(_FRAME_GRAPHS)
        config = model.config.slow
        self.ranks = max(token_sampler.ranks, code_sampler.ranks)
        starts = np.arange(config.codebooks, dtype=np.float32) * config.codebook_size
        self._starts = model.upload({"starts": starts})["starts"]  # [K]

    def get(self, first: int, batch: int, positions: int) -> Graph:
        """For `batch` sequences of up to so many positions, in the slots `first` and on."""
        cells = self._slow.cells_for(positions)
        return self._graphs.get((first, batch, cells), lambda: self._build(first, batch, cells))

    def place(self, graph: Graph, index: int, slot: int, position: int | None, *, first_frame: bool = False) -> None:
        """Tell where sequence `index` of the batch is; None lets it compute something that nobody sees."""
        self._slow.place(graph, index, slot, position)
        graph.inputs["state_rows"][index] = self._slow.cache.slots if position is None else slot
        graph.inputs["unseen"][index] = _NO_TOKEN if first_frame else 0.0

    def choose(self, graph: Graph, index: int, rules: Rules, noise: npt.NDArray[np.float32]) -> None:
        """Tell how sequence `index` of the batch is drawn; `noise` [K + 1, ranks] is of this frame."""
        inputs = graph.inputs
        inputs["limits"][index] = rules.limits
        inputs["coldness"][index] = rules.coldness
        inputs["noise"][index] = noise

    def close(self) -> None:
        self._graphs.close()

    def _build(self, first: int, batch: int, cells: int) -> Graph:
        g = GraphBuilder(self._model.backend, f"frame of {batch}")
        size, codebooks = self._model.config.slow.codebook_size, self._model.config.slow.codebooks
        state_rows = g.input("state_rows", DType.I64, batch)
        unseen = g.input("unseen", DType.F32, 1, batch)
        limit = g.input("limits", DType.F32, self.ranks, 2, batch)
        cold = g.input("coldness", DType.F32, 1, batch)
        noise = g.input("noise", DType.F32, self.ranks, codebooks + 1, batch)

        x = g.narrow(self._state.inputs, 1, first, batch)  # [width, batch]
        window = g.narrow(self._state.windows, 1, first, batch)  # [RAS_WINDOW, batch]
        hidden, fast_input = self._slow.step(g, x, first=first, cells=cells)

        ranked = self._token_sampler.rank(g, self._slow.logits(g, hidden))
        drawn = self._token_sampler.draw(g, ranked, _row(g, limit, 0), _row(g, noise, 0), cold)
        again = self._token_sampler.draw(g, ranked, _row(g, limit, 1), _row(g, noise, 1))
        drawn, again = (g.reshape(g.cast(token, DType.F32), 1, batch) for token in (drawn, again))
        token = replace_repeated(g, drawn, again, window)  # f32 [1, batch]
        seen = g.concat(g.narrow(window, 0, 1, RAS_WINDOW - 1), g.add(token, unseen), 0)
        g.set_rows(self._state.windows, seen, state_rows)

        token_id = g.reshape(g.cast(token, DType.I32), batch)
        code0 = g.reshape(g.cast(g.clamp(token, 0.0, size - 1.0), DType.I32), batch)

        def choose(codebook: int, logits: Tensor) -> Tensor:
            likeliest = self._code_sampler.rank(g, logits)
            return self._code_sampler.draw(g, likeliest, _row(g, limit, 0), _row(g, noise, codebook + 1), cold)

        column = g.reshape(code0, 1, batch)
        for code in self._fast.sweep(g, fast_input, code0, choose):
            column = g.concat(column, g.reshape(code, 1, batch), 0)  # [K, batch] at last
        g.output("frame", g.concat(g.reshape(token_id, 1, batch), column, 0))  # [1 + K, batch]
        g.set_rows(self._state.inputs, self._embed(g, token_id, column), state_rows)
        return g.build()

    def _embed(self, g: GraphBuilder, token: Tensor, codes: Tensor) -> Tensor:
        """The next input [width, batch] from tokens [batch] and codes [K, batch] (specification, 2.2)."""
        config, batch = self._model.config.slow, token.shape[0]
        rows = g.cast(g.add(g.cast(codes, DType.F32), self._starts), DType.I32)  # of all codebooks' tables in one
        table = self._model.tensor("codebook_embeddings.weight")
        found = g.get_rows(table, g.reshape(rows, config.codebooks * batch))
        found = g.reshape(found, config.width, config.codebooks, batch)
        total = g.reshape(g.sum_rows(g.cont(g.transpose(found))), config.width, batch)
        x = g.add(g.get_rows(self._model.tensor("semantic_embeddings"), token), total)
        return g.scale(x, (config.codebooks + 1) ** -0.5) if config.scale_embeddings else x


def _row(g: GraphBuilder, a: Tensor, index: int) -> Tensor:
    """Row `index` of [n, rows, batch] as [n, batch]."""
    return g.view(a, (a.shape[0], a.shape[2]), (a.strides[2],), index * a.strides[1])
