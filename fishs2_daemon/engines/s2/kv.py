"""Keys and values of all sequences: one slot each, in the outermost dimension of every view."""

from dataclasses import dataclass
from math import sqrt

from fishs2_daemon.engines.s2.config import TransformerConfig
from fishs2_daemon.engines.s2.ggml import Backend, DType, GraphBuilder, Store, Tensor
from fishs2_daemon.errors import EngineError

#: Head dimensions that CUDA's attention kernels exist for.
_CUDA_WIDTHS = (64, 80, 96, 112, 128, 256)


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Keys and values of a slot's first positions, of every layer, apart from all slots. Those of layers on another
    device are a snapshot of their own, `lower`."""

    positions: int
    store: Store
    keys: tuple[Tensor, ...]  # [kv_width, positions]
    values: tuple[Tensor, ...]  # [kv_width, positions], or [positions, kv_width]: as the cache has them
    lower: "Snapshot | None" = None

    @property
    def n_bytes(self) -> int:
        return self.store.n_bytes + (self.lower.n_bytes if self.lower else 0)

    def close(self) -> None:
        """May be called twice."""
        self.store.close()
        if self.lower:
            self.lower.close()


def is_fused(backend: Backend, config: TransformerConfig, dtype: DType) -> bool:
    """Whether attention is to be one kernel. Several take any width, and are nearer to the reference where that one
    computes in F16: with F16 values on a CPU, and with F32 keys on CUDA."""
    if backend.device == "cpu":
        return dtype is DType.F32
    return dtype is DType.F16 and config.head_dim in _CUDA_WIDTHS


class KvCache:
    """`slots` times `cells` positions of every layer; the row of a position is `slot * cells + position`."""

    def __init__(self, backend: Backend, config: TransformerConfig, *, slots: int, cells: int, dtype: DType) -> None:
        self.slots, self.cells = slots, cells
        self._config, self._dtype = config, dtype
        self._backend = backend
        #: Whether attention is one kernel.
        self.fused = is_fused(backend, config, dtype)
        # Products take rows of values by head, not by position; a processor turns them around more slowly than it
        # computes with them, so there they are kept so.
        self._by_head = not self.fused and backend.device == "cpu"
        self._store = Store(backend)
        self._keys, self._values = self._new(self._store, cells * slots)
        self._store.allocate()

    @property
    def n_bytes(self) -> int:
        return self._store.n_bytes

    @property
    def position_bytes(self) -> int:
        """Of one position, in all layers."""
        config = self._config
        return 2 * config.layers * self._dtype.row_bytes(config.kv_width)

    def put(self, g: GraphBuilder, layer: int, k: Tensor, v: Tensor, rows: Tensor) -> None:
        """Write keys and values [kv_width, n] over the rows i64 [n]; what reads them comes later in the graph."""
        g.set_rows(self._keys[layer], k, rows)
        values = self._values[layer]
        if self._by_head:
            n, row = rows.shape[0], values.strides[1]
            values = g.view(values, (1, *values.shape[:2]), (values.strides[0], row))
            v = g.view(v, (1, n, v.shape[0]), (v.strides[1], v.strides[0]))
        g.set_rows(values, v, rows)

    def attend(self, g: GraphBuilder, layer: int, q: Tensor, mask: Tensor | None, *, first: int, cells: int) -> Tensor:
        """Of `q` [head_dim, tokens, heads, batch] to the first `cells` cells of slots `first` and on, one for each of
        the batch; `mask` f16 [cells, tokens, 1, batch] -> [head_dim * heads, tokens * batch]."""
        width, tokens, heads, batch = q.shape
        k, v = self._keys[layer], self._values[layer]
        k = self._window(g, k, first, cells, batch)
        v = self._turned_window(g, v, first, cells, batch) if self._by_head else self._window(g, v, first, cells, batch)
        scale = 1 / sqrt(width)
        if self.fused:
            out = g.flash_attn(q, k, v, mask, scale, precise=True)
        else:
            weights = g.soft_max(g.mul_mat(k, g.cont(q), precise=True), mask, scale)  # [cells, tokens, heads, batch]
            v = v if self._by_head else g.cont(g.transpose(v))
            out = g.mul_mat(v, weights, precise=True)  # [head_dim, tokens, heads, batch]
            out = g.cont(g.permute(out, 0, 2, 1, 3))
        return g.reshape(out, width * heads, tokens * batch)

    def save(self, slot: int, positions: int) -> Snapshot:
        """Raises `EngineError` when the device has not enough memory."""
        store = Store(self._backend)
        keys, values = self._new(store, positions)
        store.allocate()
        snapshot = Snapshot(positions, store, keys, values)
        try:
            self._copy(slot, snapshot, loading=False)
        except EngineError:
            snapshot.close()
            raise
        return snapshot

    def load(self, slot: int, snapshot: Snapshot) -> None:
        """Into the slot's first positions."""
        self._copy(slot, snapshot, loading=True)

    def close(self) -> None:
        self._store.close()

    def _copy(self, slot: int, snapshot: Snapshot, *, loading: bool) -> None:
        """A graph for this once: it is small, and which snapshot meets which slot is not known before."""
        if not self._keys:
            return
        g = GraphBuilder(self._backend, "copy of keys and values")
        both = (1, self._keys, snapshot.keys), (0 if self._by_head else 1, self._values, snapshot.values)
        for axis, kept, saved in both:
            for whole, part in zip(kept, saved, strict=True):
                window = g.narrow(whole, axis, slot * self.cells, snapshot.positions)
                g.copy(part, window) if loading else g.copy(window, part)
        with g.build() as graph:
            graph.compute()

    def _new(self, store: Store, positions: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Keys and values of every layer."""
        dtype, width, layers = self._dtype, self._config.kv_width, range(self._config.layers)
        shape = (positions, width) if self._by_head else (width, positions)
        keys = tuple(store.new(dtype, width, positions) for _ in layers)
        return keys, tuple(store.new(dtype, *shape) for _ in layers)

    def _window(self, g: GraphBuilder, kept: Tensor, first: int, cells: int, batch: int) -> Tensor:
        """[head_dim, cells, kv_heads, batch]"""
        config, row = self._config, kept.strides[1]
        shape = (config.head_dim, cells, config.kv_heads, batch)
        strides = (row, config.head_dim * kept.dtype.block_bytes, row * self.cells)
        return g.view(kept, shape, strides, first * self.cells * row)

    def _turned_window(self, g: GraphBuilder, kept: Tensor, first: int, cells: int, batch: int) -> Tensor:
        """[cells, head_dim, kv_heads, batch], of values that are kept by head."""
        config, row, cell = self._config, kept.strides[1], kept.dtype.block_bytes
        shape = (cells, config.head_dim, config.kv_heads, batch)
        return g.view(kept, shape, (row, config.head_dim * row, self.cells * cell), first * self.cells * cell)
