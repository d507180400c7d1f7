"""The layers that the slow and the fast transformer are stacks of (specification, 2.1)."""

from dataclasses import dataclass

import numpy as np

from fishs2_daemon.engines.s2.config import TransformerConfig
from fishs2_daemon.engines.s2.ggml import GraphBuilder, Tensor
from fishs2_daemon.engines.s2.kv import KvCache
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.rope import Rope, Rotation


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One pass of `tokens` new tokens of each of `batch` sequences, which have the slots `first` and on.

    Columns are ordered by sequence, then by token. `rows` i64 [tokens * batch] is where their keys go; of each
    slot's cells the first `cells` are looked at, and of those what `mask` f16 [cells, tokens, 1, batch] lets see.
    """

    batch: int
    tokens: int
    first: int
    cells: int
    rows: Tensor
    rotation: Rotation
    mask: Tensor | None


class Transformer:
    """Layers `{prefix}layers.0` and on, or some in a row of them, without the final norm."""

    def __init__(
        self,
        model: Model,
        prefix: str,
        config: TransformerConfig,
        rope: Rope,
        cache: KvCache,
        layers: range | None = None,
    ) -> None:
        """`layers` are all where none are given; `cache` holds as many."""
        self.config, self.cache = config, cache
        self.layers = range(config.layers) if layers is None else layers
        self._model, self._prefix, self._rope = model, prefix, rope
        self._qk_norms = self._joined_norms() if config.qk_norm else {}

    def __call__(self, g: GraphBuilder, x: Tensor, at: Pass) -> Tensor:
        """[width, tokens * batch] -> the same"""
        for layer in self.layers:
            x = self._attention(g, layer, x, at)
            x = self._feed_forward(g, layer, x)
        return x

    def norm(self, g: GraphBuilder, x: Tensor, name: str) -> Tensor:
        """By the root of its mean square, times the weight of this name."""
        return g.mul(g.rms_norm(x, self.config.norm_eps), self._model.tensor(f"{self._prefix}{name}.weight"))

    def _attention(self, g: GraphBuilder, layer: int, x: Tensor, at: Pass) -> Tensor:
        config, name = self.config, f"layers.{layer}.attention"
        qkv = self._linear(g, self.norm(g, x, f"layers.{layer}.attention_norm"), f"{name}.wqkv")  # [qkv_rows, columns]
        columns, both = x.shape[1], config.heads + config.kv_heads
        values = g.narrow(qkv, 0, config.q_width + config.kv_width, config.kv_width)
        qk = qkv
        if config.qk_norm:
            heads = g.view(qkv, (config.head_dim, both, columns), (config.head_dim * 4, qkv.strides[1]))
            normed = g.mul(g.rms_norm(heads, config.norm_eps), self._qk_norms[layer])
            qk = g.reshape(normed, config.head_dim * both, columns)
        qk = self._rope.rotate(g, qk, both, at.rotation)  # [head_dim, heads + kv_heads, columns]
        row = qk.strides[2]
        keys = g.view(qk, (config.kv_width, columns), (row,), config.q_width * 4)
        kept = layer - self.layers.start
        self.cache.put(g, kept, keys, values, at.rows)
        shape = (config.head_dim, at.tokens, config.heads, at.batch)
        queries = g.view(qk, shape, (row, config.head_dim * 4, row * at.tokens))
        out = self.cache.attend(g, kept, queries, at.mask, first=at.first, cells=at.cells)
        return g.add(self._linear(g, out, f"{name}.wo"), x)

    def _feed_forward(self, g: GraphBuilder, layer: int, x: Tensor) -> Tensor:
        name = f"layers.{layer}.feed_forward"
        h = self.norm(g, x, f"layers.{layer}.ffn_norm")
        inner = g.swiglu(self._linear(g, h, f"{name}.w1"), self._linear(g, h, f"{name}.w3"))
        return g.add(self._linear(g, inner, f"{name}.w2"), x)

    def _linear(self, g: GraphBuilder, x: Tensor, name: str) -> Tensor:
        y = g.mul_mat(self._model.tensor(f"{self._prefix}{name}.weight"), x, precise=True)
        bias = f"{self._prefix}{name}.bias"
        return g.add(y, self._model.tensor(bias)) if self._model.has(bias) else y

    def _joined_norms(self) -> dict[int, Tensor]:
        """Of each layer the weights for all query heads, then all key heads: one norm does for both."""
        config, name = self.config, f"{self._prefix}layers.{{}}.attention.{{}}_norm.weight"
        heads = {"q": config.heads, "k": config.kv_heads}
        tables = {
            str(layer): np.concatenate(
                [np.tile(self._model.values(name.format(layer, part)), (n, 1)) for part, n in heads.items()]
            )
            for layer in self.layers
        }  # [heads + kv_heads, head_dim]
        return {int(layer): table for layer, table in self._model.upload(tables).items()} if tables else {}
