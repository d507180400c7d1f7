"""The slow transformer: columns of a token and its codes go in, the next token's logits come out (specification, 2)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.ggml import Arena, DType, Graph, GraphBuilder, Tensor
from fishs2_daemon.engines.s2.graphs import Graphs
from fishs2_daemon.engines.s2.kv import Snapshot
from fishs2_daemon.engines.s2.lower import LowerLayers
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.rope import RopeKind
from fishs2_daemon.engines.s2.sizes import PREFILL_TOKENS
from fishs2_daemon.engines.s2.stack import Stack
from fishs2_daemon.errors import EngineError

#: A processor's time grows with every column, and it builds a graph faster than it computes one: there a prompt's rest
#: is padded to the next multiple of this, not to one of `PREFILL_TOKENS`.
_CPU_STEP = 16

#: As many as there are for eight slots; they share their memory.
_PREFILL_GRAPHS = 256
_CPU_GRAPHS = 16

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

    def __init__(
        self,
        model: Model,
        *,
        slots: int,
        context: int,
        rope: RopeKind,
        kv_type: DType,
        lower: Model | None = None,
    ) -> None:
        """`lower` holds the first layers where `model` does not."""
        config = model.config.slow
        if not 0 < context <= config.context or slots < 1:
            raise EngineError(f"{slots} slots of {context} positions: the model has room for 1 to {config.context}")
        held = [*(lower.slow_layers if lower else ()), *model.slow_layers]
        if held != [*range(config.layers)]:
            raise EngineError(f"of {config.layers} layers, those that were loaded are {held}")
        self.context = context
        self.stack = Stack(model, slots=slots, context=context, rope=rope, kv_type=kv_type)
        self.cache = self.stack.cache
        self.lower = lower and LowerLayers(lower, slots=slots, context=context, rope=rope, kv_type=kv_type)
        self._model, self._config = model, config
        limit = _CPU_GRAPHS if model.backend.device == "cpu" else _PREFILL_GRAPHS
        self._graphs = Graphs(model.backend, limit, shares_values=True)

    def prefill(self, slot: int, columns: Columns, start: int = 0) -> None:
        """Start to compute keys and values of `columns` [1 + K, T], which are a slot's positions from `start` on.

        Earlier positions must be there. Raises `EngineError` when the columns are none, or do not fit.
        """
        self._check(slot, columns, start)
        for at, piece in _pieces(columns):
            x = self._lift_piece(slot, piece, start + at)
            if self.stack.layers:
                self._run(slot, x, start + at, trace=False).start()

    def trace(self, slot: int, columns: Columns, start: int = 0) -> SlowTrace:
        """A prefill that tells everything: for tests, and to compare engines."""
        self._check(slot, columns, start)
        found: list[tuple[Floats, ...]] = []
        for at, piece in _pieces(columns):
            n = piece.shape[1]
            graph = self._run(slot, self._lift_piece(slot, piece, start + at), start + at, trace=True)
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

        Adds the inputs that `Stack.place` fills.
        """
        return self._forward(g, x, first=first, batch=x.shape[1], tokens=1, cells=cells)

    def logits(self, g: GraphBuilder, hidden: Tensor) -> Tensor:
        """[width, n] -> [padded(codebook_size + 1), n]"""
        return g.mul_mat(self._model.tensor("slow_head"), hidden, precise=True)

    def lift(self, first: int, positions: Sequence[int | None], columns: Columns) -> Floats:
        """What the layers here are given for one token of each slot from `first` on, `[batch, width]`. `columns`
        [1 + K, n] are of those that have a position; for the others it means nothing."""
        x = np.zeros((len(positions), self._config.width), np.float32)
        x[[position is not None for position in positions]] = self.embed(columns)
        return self.lower.step(first, x, positions) if self.lower else x

    def build(self, slot: int, tokens: int, cells: int) -> None:
        """The graph of a piece of a prefill, one of `PREFILL_TOKENS`."""
        if self.lower and tokens == PREFILL_TOKENS[-1]:
            self.lower.build(slot, 1, tokens, cells)
        if self.stack.layers:
            self._graph(slot, tokens, cells, trace=False)

    def build_lift(self, first: int, batch: int, cells: int) -> None:
        """The graph of `lift`, where it has one."""
        if self.lower:
            self.lower.build(first, batch, 1, cells)

    def save(self, slot: int, positions: int) -> Snapshot:
        """Of the slot's first positions. Raises `EngineError` when a device has not enough memory."""
        lower = self.lower.stack.cache.save(slot, positions) if self.lower else None
        try:
            return replace(self.cache.save(slot, positions), lower=lower)
        except EngineError:
            if lower:
                lower.close()
            raise

    def load(self, slot: int, snapshot: Snapshot) -> None:
        """Into the slot's first positions."""
        self.cache.load(slot, snapshot)
        if self.lower and snapshot.lower:
            self.lower.stack.cache.load(slot, snapshot.lower)

    @property
    def position_bytes(self) -> int:
        """Of the keys and values of one position, wherever they are."""
        return self.cache.position_bytes + (self.lower.stack.cache.position_bytes if self.lower else 0)

    @property
    def n_bytes(self) -> int:
        """Memory of keys, values and graphs on the device; what is elsewhere not counted."""
        return self.cache.n_bytes + self._graphs.n_bytes

    def close(self) -> None:
        self._graphs.close()
        self.cache.close()
        if self.lower:
            self.lower.close()

    def _graph(self, slot: int, tokens: int, cells: int, *, trace: bool) -> Graph:
        return self._graphs.get(
            (slot, tokens, cells, trace), lambda arena: self._build(slot, tokens, cells, trace, arena)
        )

    def _lift_piece(self, slot: int, columns: Columns, start: int) -> Floats:
        """What the layers here are given for a piece of a prompt, `[T, width]`."""
        x = self.embed(columns)
        return self.lower.prefill(slot, x, start, _padded(len(x), "cpu")) if self.lower else x

    def _run(self, slot: int, x: Floats, start: int, *, trace: bool) -> Graph:
        """The graph for `x` [T, width], filled and not yet computed."""
        tokens = _padded(len(x), self._model.backend.device)
        graph = self._graph(slot, tokens, self.stack.cells_for(start + len(x)), trace=trace)
        self.stack.fill(graph, slot, start, x)
        return graph

    def _build(self, slot: int, tokens: int, cells: int, trace: bool, arena: Arena) -> Graph:
        g = GraphBuilder(self._model.backend, f"prefill of {tokens} tokens")
        x = g.input("x", DType.F32, self._config.width, tokens)
        hidden, fast_input = self._forward(g, x, first=slot, batch=1, tokens=tokens, cells=cells)
        if trace:
            g.output("hidden", hidden)
            g.output("fast_input", fast_input)
            g.output("logits", self.logits(g, hidden))
        return g.build(arena)

    def _forward(
        self, g: GraphBuilder, x: Tensor, *, first: int, batch: int, tokens: int, cells: int
    ) -> tuple[Tensor, Tensor]:
        x = self.stack(g, x, first=first, batch=batch, tokens=tokens, cells=cells)
        hidden = self.stack.transformer.norm(g, x, "norm")
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


def _padded(n: int, device: str) -> int:
    """Tokens of the graph for a piece of so many."""
    if device == "cpu":
        return -(-n // _CPU_STEP) * _CPU_STEP
    return next(size for size in PREFILL_TOKENS if size >= n)


def _pieces(columns: Columns) -> list[tuple[int, Columns]]:
    """Where each starts, and its columns."""
    step = PREFILL_TOKENS[-1]
    return [(at, columns[:, at : at + step]) for at in range(0, columns.shape[1], step)]
