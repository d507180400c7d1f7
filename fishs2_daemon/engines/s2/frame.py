"""One frame for a batch of sequences, as one graph.

    input ─ slow step ─ logits ─ token ─ repeated? drawn again ─ fast sweeps ─ codes ─ embedded: the next input
      ↑                                                                                     │
      └──────────────────────────── stays on the device ────────────────────────────────────┘

Where the slow transformer's first layers are on another device, it does not: each frame is told its input (`lower`).
Tokens are counted from the first semantic one, so that the end token's number is the size of the codebook.
"""

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.fast import FastAR
from fishs2_daemon.engines.s2.ggml import Arena, DType, Graph, GraphBuilder, Store, Tensor
from fishs2_daemon.engines.s2.ggml.transfer import Reading
from fishs2_daemon.engines.s2.graphs import Graphs
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.sampling import RAS_WINDOW, Rules, Sampler, Sampling, replace_repeated
from fishs2_daemon.engines.s2.sizes import padded
from fishs2_daemon.engines.s2.slow import SlowAR
from fishs2_daemon.errors import EngineError

#: Far from any token, for the first frame's, which may be repeated: the window begins behind it.
_NO_TOKEN = float(-(1 << 22))

#: More than any two logits differ.
_LARGE = 1e9

#: A graph takes some 2 MB of the host's memory, and milliseconds to build.
_FRAME_GRAPHS = 256

#: Frames whose results are kept: one may be computed while the one before it is read.
PARITIES = 2


class FrameState:
    """What every slot carries from frame to frame on the device. Its last row belongs to no slot: what the idle
    sequences of a batch leave goes there."""

    def __init__(self, model: Model, slots: int) -> None:
        self._store = Store(model.backend)
        self.inputs = self._store.new(DType.F32, model.config.slow.width, slots + 1)
        self.windows = self._store.new(DType.F32, RAS_WINDOW, slots + 1)
        self.results = self._store.new(DType.F32, 1 + model.config.slow.codebooks, PARITIES * (slots + 1))
        self._store.allocate()
        self._rows = slots + 1
        self._found = Reading(model.backend.native, self.results)
        # The official engines start from zeros, and count tokens from that of number 0.
        self._empty = np.full(RAS_WINDOW, -model.config.slow.semantic_begin, np.float32)

    def begin(self, slot: int, x: npt.NDArray[np.float32] | None) -> None:
        """A new sequence, whose next input is `x` [width]; None where each frame is told its input."""
        for tensor, row in ((self.inputs, x), (self.windows, self._empty)):
            if row is not None:
                self._store.write_bytes(tensor, np.ascontiguousarray(row), slot * tensor.strides[1])

    def result_row(self, slot: int, parity: int) -> int:
        return parity * self._rows + slot

    def read(self) -> npt.NDArray[np.int32]:
        """Tokens and codes of all slots, `[PARITIES * (slots + 1), 1 + K]`. Waits for nothing: see `Event`."""
        if not self._store.ready:
            raise EngineError("the sequences' memory was given back")
        results: npt.NDArray[np.float32] = self._found()[0, 0]
        return results.astype(np.int32)

    def close(self) -> None:
        self._store.close()


class FrameGraph:
    """Builds the graph of a batch when it is first asked for, and fills its inputs."""

    def __init__(
        self, model: Model, slow: SlowAR, fast: FastAR, token_sampler: Sampler, code_sampler: Sampler, state: FrameState
    ) -> None:
        self._model, self._slow, self._fast, self._state = model, slow, fast, state
        self._token_sampler, self._code_sampler = token_sampler, code_sampler
        self._graphs = Graphs(model.backend, _FRAME_GRAPHS)
        config = model.config.slow
        self.ranks = max(token_sampler.ranks, code_sampler.ranks)
        starts = np.arange(config.codebooks, dtype=np.float32) * config.codebook_size
        end = np.zeros(padded(config.codebook_size + 1), np.float32)
        end[config.codebook_size] = -_LARGE
        constants = model.upload({"starts": starts, "end": end})
        self._starts = constants["starts"]  # [K]
        self._end = constants["end"]  # [padded(codebook_size + 1)]

    def get(self, first: int, batch: int, positions: int, *, endless: bool = False) -> Graph:
        """For `batch` sequences of up to so many positions, in the slots `first` and on. In an `endless` graph those
        that `place` names cannot draw the end token."""
        cells = self._slow.stack.cells_for(positions)
        return self._graphs.get(
            (first, batch, cells, endless), lambda arena: self._build(first, batch, cells, endless, arena)
        )

    def place(
        self, graph: Graph, index: int, slot: int, position: int | None, *, is_first: bool = False, parity: int = 0,
        endless: bool = False,
    ) -> None:  # fmt: skip
        """Tell where sequence `index` of the batch is, and whether this is its first frame; a position of None lets it
        compute something that nobody sees. Frames that are in flight together differ in their `parity`."""
        row = self._slow.cache.slots if position is None else slot
        told = row, parity, is_first, endless
        told_before, before = graph.memo.get(index, ((), None))
        graph.memo[index] = told, position
        if told == told_before and position == before:
            return
        if told != told_before:
            inputs = graph.inputs
            inputs["state_rows"][index] = row
            inputs["result_rows"][index] = self._state.result_row(row, parity)
            inputs["unseen"][index] = _NO_TOKEN if is_first else 0.0
            if "endless" in inputs:
                inputs["endless"][index] = endless
        if position is None or before != position - 1:
            self._slow.stack.place(graph, index, slot, position)
        else:
            self._slow.stack.move_on(graph, index, slot, position)

    def feed(self, graph: Graph, x: npt.NDArray[np.float32]) -> None:
        """The input [batch, width] of a frame, where the slow transformer's first layers are elsewhere: it does not
        stay on the device then."""
        graph.inputs["x"][...] = x

    def choose(self, graph: Graph, index: int, rules: Rules, noise: npt.NDArray[np.float32]) -> None:
        """Tell how sequence `index` of the batch is drawn; `noise` [K + 1, ranks] is of this frame."""
        inputs = graph.inputs
        if graph.memo.get(~index) is not rules:
            graph.memo[~index] = rules
            inputs["limits"][index] = rules.limits
            inputs["coldness"][index] = rules.coldness
        inputs["noise"][index] = noise

    @property
    def n_bytes(self) -> int:
        """Memory of the graphs on the device."""
        return self._graphs.n_bytes

    def close(self) -> None:
        self._graphs.close()

    def _build(self, first: int, batch: int, cells: int, endless: bool, arena: Arena) -> Graph:
        g = GraphBuilder(self._model.backend, f"frame of {batch}")
        size, codebooks = self._model.config.slow.codebook_size, self._model.config.slow.codebooks
        state_rows = g.input("state_rows", DType.I64, batch)
        result_rows = g.input("result_rows", DType.I64, batch)
        unseen = g.input("unseen", DType.F32, 1, batch)
        limit = g.input("limits", DType.F32, self.ranks, 2, batch)
        cold = g.input("coldness", DType.F32, 1, batch)
        noise = g.input("noise", DType.F32, self.ranks, codebooks + 1, batch)

        is_fed = self._slow.lower is not None
        if is_fed:
            x = g.input("x", DType.F32, self._model.config.slow.width, batch)
        else:
            x = g.narrow(self._state.inputs, 1, first, batch)  # [width, batch]
        window = g.narrow(self._state.windows, 1, first, batch)  # [RAS_WINDOW, batch]
        hidden, fast_input = self._slow.step(g, x, first=first, cells=cells)

        logits = self._slow.logits(g, hidden)
        if endless:
            ends = g.repeat(self._end, *logits.shape)
            logits = g.add(logits, g.mul(ends, g.input("endless", DType.F32, 1, batch)))
        ranked = self._token_sampler.rank(g, logits)
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
        g.set_rows(self._state.results, g.concat(token, g.cast(column, DType.F32), 0), result_rows)  # [1 + K, batch]
        if not is_fed:
            g.set_rows(self._state.inputs, self._embed(g, token_id, column), state_rows)
        graph = g.build(arena)
        # Whoever `choose` was not called for draws something, too: on CUDA the largest of no numbers is number -1.
        anything = Rules.of(Sampling(top_p=1.0, top_k=self.ranks), self.ranks)
        graph.inputs["limits"][...] = anything.limits
        graph.inputs["coldness"][...] = anything.coldness
        return graph

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
