"""The slow transformer: columns of a token and its codes go in, the next token's logits come out (specification, 2)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.ggml import Arena, DType, Graph, GraphBuilder, Tensor
from fishs2_daemon.engines.s2.graphs import Graphs
from fishs2_daemon.engines.s2.kv import CELLS, KvCache
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.rope import Rope, RopeKind
from fishs2_daemon.engines.s2.transformer import Pass, Transformer
from fishs2_daemon.errors import EngineError

#: Tokens of a prefill's graphs: a prompt is cut into the largest, and its rest padded to the smallest that holds it.
PREFILL_TOKENS = (32, 64, 128, 256, 512)

#: As many as there are for eight slots; they share their memory.
_PREFILL_GRAPHS = 256

Floats = npt.NDArray[np.float32]
Columns = npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class SlowTrace:
    """For every column of a prompt; logits of the semantic tokens in order, then of the end token."""

    logits: Floats  # [T, codebook_size + 1]
    hidden: Floats  # [T, width], after the final norm
    fast_input: Floats  # [T, width], what the fast transformer is given


class SlowAR:
    """Holds `slots` sequences of up to `context` positions."""

    def __init__(self, model: Model, *, slots: int, context: int, rope: RopeKind, kv_type: DType) -> None:
        config = model.config.slow
        if not 0 < context <= config.context or slots < 1:
            raise EngineError(f"{slots} slots of {context} positions: the model has room for 1 to {config.context}")
        self.context = context
        #: A slot's last cell is no position: what nobody shall see is written there.
        self.cache = KvCache(
            model.backend, config, slots=slots, cells=-(-(context + 1) // CELLS) * CELLS, dtype=kv_type
        )
        self._model, self._config = model, config
        self._rope = Rope(model, config, rope, context)
        self._layers = Transformer(model, "", config, self._rope, self.cache)
        self._graphs = Graphs(model.backend, _PREFILL_GRAPHS)

    def prefill(self, slot: int, columns: Columns, start: int = 0) -> None:
        """Start to compute keys and values of `columns` [1 + K, T], which are a slot's positions from `start` on.

        Earlier positions must be there. Raises `EngineError` when the columns are none, or do not fit.
        """
        self._check(slot, columns, start)
        for at, piece in _pieces(columns):
            self._run(slot, piece, start + at, trace=False).start()

    def trace(self, slot: int, columns: Columns, start: int = 0) -> SlowTrace:
        """A prefill that tells everything: for tests, and to compare engines."""
        self._check(slot, columns, start)
        found: list[tuple[Floats, ...]] = []
        for at, piece in _pieces(columns):
            graph, n = self._run(slot, piece, start + at, trace=True), piece.shape[1]
            graph.compute()
            found.append(tuple(graph.read(name)[0, 0, :n] for name in ("logits", "hidden", "fast_input")))
        logits, hidden, fast_input = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return SlowTrace(logits[:, : self._config.codebook_size + 1], hidden, fast_input)

    def embed(self, columns: Columns) -> Floats:
        """`[1 + K, T]` to `[T, width]`, on the host: most rows of the text's table are never needed elsewhere."""
        config, tokens, codes = self._config, columns[0], columns[1:]
        x = self._model.gather("embeddings.weight", tokens)
        semantic = (config.semantic_begin <= tokens) & (tokens <= config.semantic_end)
        for codebook in range(config.codebooks):
            rows = codes[codebook, semantic] + codebook * config.codebook_size
            if rows.size:
                x[semantic] += self._model.gather("codebook_embeddings.weight", rows)
        if config.scale_embeddings:
            x[semantic] *= np.float32((config.codebooks + 1) ** -0.5)
        return x

    def step(self, g: GraphBuilder, x: Tensor, *, first: int, cells: int) -> tuple[Tensor, Tensor]:
        """One token [width, batch] of each slot from `first` on: the hidden state, and the fast transformer's input.

        Adds the inputs that `place` fills.
        """
        return self._forward(g, x, self._pass(g, first, x.shape[1], 1, cells))

    def logits(self, g: GraphBuilder, hidden: Tensor) -> Tensor:
        """[width, n] -> [padded(codebook_size + 1), n]"""
        return g.mul_mat(self._model.tensor("slow_head"), hidden, precise=True)

    def place(self, graph: Graph, index: int, slot: int, position: int | None) -> None:
        """Tell a step's graph where sequence `index` of its batch is; None is nowhere: it sees one cell of anything."""
        inputs, cells = graph.inputs, self.cache.cells
        inputs["rows"][index] = slot * cells + (cells - 1 if position is None else position)
        inputs["positions"][index] = position or 0
        inputs["mask"][index, ..., : (position or 0) + 1] = 0
        inputs["mask"][index, ..., (position or 0) + 1 :] = -np.inf

    def cells_for(self, positions: int) -> int:
        """Cells that a graph must look at: doubled from step to step, so that there are few graphs."""
        cells = CELLS
        while cells < positions:
            cells *= 2
        return min(cells, self.cache.cells)

    def cell_counts(self, *, largest_first: bool = False) -> list[int]:
        """All that `cells_for` may say."""
        counts = {self.cells_for(CELLS << n) for n in range(self.cache.cells.bit_length())}
        return sorted(counts, reverse=largest_first)

    def build(self, slot: int, tokens: int, cells: int) -> Graph:
        """The graph of a piece of a prefill, one of `PREFILL_TOKENS`."""
        return self._graph(slot, tokens, cells, trace=False)

    @property
    def n_bytes(self) -> int:
        """Memory of keys, values and graphs on the device."""
        return self.cache.n_bytes + self._graphs.n_bytes

    def close(self) -> None:
        self._graphs.close()
        self.cache.close()

    def _graph(self, slot: int, tokens: int, cells: int, *, trace: bool) -> Graph:
        return self._graphs.get(
            (slot, tokens, cells, trace), lambda arena: self._build(slot, tokens, cells, trace, arena)
        )

    def _run(self, slot: int, columns: Columns, start: int, *, trace: bool) -> Graph:
        """The graph for some columns, filled and not yet computed."""
        n = columns.shape[1]
        tokens = next(size for size in PREFILL_TOKENS if size >= n)
        cells = self.cells_for(start + n)
        graph = self._graph(slot, tokens, cells, trace=trace)
        inputs, last = graph.inputs, (slot + 1) * self.cache.cells - 1
        inputs["x"][:n] = self.embed(columns)
        inputs["x"][n:] = 0
        inputs["rows"][:] = last
        inputs["rows"][:n] = slot * self.cache.cells + start + np.arange(n)
        inputs["positions"][:] = np.minimum(start + np.arange(tokens), self.context - 1)
        seen = np.arange(cells) <= np.minimum(start + np.arange(tokens), start + n - 1)[:, None]
        inputs["mask"][0, 0] = np.where(seen, np.float16(0), np.float16(-np.inf))
        return graph

    def _build(self, slot: int, tokens: int, cells: int, trace: bool, arena: Arena) -> Graph:
        g = GraphBuilder(self._model.backend, f"prefill of {tokens} tokens")
        x = g.input("x", DType.F32, self._config.width, tokens)
        hidden, fast_input = self._forward(g, x, self._pass(g, slot, 1, tokens, cells))
        if trace:
            g.output("hidden", hidden)
            g.output("fast_input", fast_input)
            g.output("logits", self.logits(g, hidden))
        return g.build(arena)

    def _pass(self, g: GraphBuilder, first: int, batch: int, tokens: int, cells: int) -> Pass:
        positions = g.input("positions", DType.I32, tokens * batch)
        return Pass(
            batch=batch,
            tokens=tokens,
            first=first,
            cells=cells,
            rows=g.input("rows", DType.I64, tokens * batch),
            rotation=self._rope.gather(g, positions),
            mask=g.input("mask", DType.F16, cells, tokens, 1, batch),
        )

    def _forward(self, g: GraphBuilder, x: Tensor, at: Pass) -> tuple[Tensor, Tensor]:
        x = self._layers(g, x, at)
        hidden = self._layers.norm(g, x, "norm")
        return hidden, hidden if self._model.config.fast.normed_input else x

    def _check(self, slot: int, columns: Columns, start: int) -> None:
        config = self._config
        if columns.ndim != 2 or columns.shape[0] != config.codebooks + 1 or columns.dtype.kind not in "iu":
            found = f"{columns.dtype}{list(columns.shape)}"
            raise EngineError(f"a prompt is integers of {config.codebooks + 1} rows, not {found}")
        if not columns.shape[1]:
            raise EngineError("a prompt has one column at least")
        if not 0 <= slot < self.cache.slots:
            raise EngineError(f"there is no slot {slot}: there are {self.cache.slots}")
        if not 0 <= start <= self.context - columns.shape[1]:
            raise EngineError(f"{columns.shape[1]} columns from {start} on exceed the context of {self.context}")
        if columns.min() < 0 or columns[0].max() >= config.vocab or columns[1:].max() >= config.codebook_size:
            raise EngineError("a prompt holds a token or a code that the model does not have")


def _pieces(columns: Columns) -> list[tuple[int, Columns]]:
    """Where each starts, and its columns."""
    step = PREFILL_TOKENS[-1]
    return [(at, columns[:, at : at + step]) for at in range(0, columns.shape[1], step)]
