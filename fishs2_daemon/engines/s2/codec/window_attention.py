"""The codec's transformers: a position sees a window of positions that ends with itself (7.1, 7.5)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.codec.passes import Pass
from fishs2_daemon.engines.s2.codec.state import StateLayout
from fishs2_daemon.engines.s2.config import CodecTransformerConfig
from fishs2_daemon.engines.s2.ggml import DType, Tensor
from fishs2_daemon.engines.s2.model import Model

#: Sines and cosines as they are, or rounded as the official engines round them.
Rope = Literal["bf16", "f32"]


class WindowTransformer:
    """[width, columns] -> the same, after the final norm.

    Keys are carried after rotation by their absolute position. The host computes the angles for every pass, in
    float64, so they are as exact after days as at the start.
    """

    def __init__(
        self,
        model: Model,
        name: str,
        config: CodecTransformerConfig,
        state: StateLayout,
        *,
        columns_per_frame: int,
        rope: Rope,
    ) -> None:
        self._model, self._name, self._config, self._rope = model, name, config, rope
        self._columns_per_frame = columns_per_frame
        carried = config.window - 1
        self._keys = [state.history(config.kv_width, carried) for _ in range(config.layers)]
        self._values = [state.history(config.kv_width, carried) for _ in range(config.layers)]

    def __call__(self, p: Pass, x: Tensor) -> Tensor:
        g, config = p.g, self._config
        columns = p.frames * self._columns_per_frame
        cos = g.input(f"{self._name}.cos", DType.F32, config.head_dim, 1, columns, p.streams)
        sin = g.input(f"{self._name}.sin", DType.F32, config.head_dim, 1, columns, p.streams)
        mask = g.input(f"{self._name}.mask", DType.F32, config.window - 1 + columns, columns, 1, p.streams)
        for layer in range(config.layers):
            x = self._attention(p, x, layer, (cos, sin), mask)
            x = self._feed_forward(p, x, layer)
        return self._norm(p, x, "norm.weight")

    def fill(self, inputs: Mapping[str, npt.NDArray[Any]], frames: Sequence[int]) -> None:
        """Set a pass's inputs: `frames` is how many each of its streams has behind it."""
        cos, sin, mask = (inputs[f"{self._name}.{kind}"] for kind in ("cos", "sin", "mask"))
        columns = cos.shape[1]  # [streams, columns, 1, head_dim]
        start = np.array(frames)[:, None] * self._columns_per_frame  # [streams, 1]
        now = np.arange(columns)
        _rotation(start + now, self._config, self._rope, cos[:, :, 0], sin[:, :, 0])
        carried = self._config.window - 1
        key = np.arange(carried + columns) - carried  # carried ones have negative numbers
        age = now[:, None] - key  # [columns, keys]
        in_window = (age >= 0) & (age <= carried)
        passed = key >= -start  # [streams, keys]
        mask[:, 0] = np.where(in_window & passed[:, None], np.float32(0), np.float32(-np.inf))

    def _attention(self, p: Pass, x: Tensor, layer: int, rotation: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        g, config, streams = p.g, self._config, p.streams
        width, columns = config.head_dim, x.shape[1] // streams
        qkv = p.linear(
            self._weight(layer, "attention.wqkv.weight"), self._norm(p, x, f"layers.{layer}.attention_norm.weight")
        )
        n_rotated = config.q_width + config.kv_width
        heads = config.heads + config.kv_heads
        qk = g.cont(g.narrow(qkv, 0, 0, n_rotated))
        qk = _rotate(p, g.reshape(qk, width, heads, columns, streams), *rotation)
        q = g.permute(g.narrow(qk, 1, 0, config.heads), 0, 2, 1, 3)  # [head_dim, columns, heads, streams]
        by_column = (config.kv_width, columns, streams)
        k = g.view(qk, by_column, qk.strides[2:], 4 * config.q_width)
        v = g.view(qkv, by_column, (qkv.strides[1], columns * qkv.strides[1]), 4 * n_rotated)
        k, v = p.preceded(self._keys[layer], k), p.preceded(self._values[layer], v)
        cells = k.shape[1]
        k = g.permute(g.reshape(k, width, config.kv_heads, cells, streams), 0, 2, 1, 3)
        v = g.cont(g.permute(g.reshape(v, width, config.kv_heads, cells, streams), 1, 2, 0, 3))
        scores = g.mul_mat(k, q, precise=True)  # [cells, columns, heads, streams]
        y = g.mul_mat(v, g.soft_max(scores, mask, width**-0.5), precise=True)  # [head_dim, columns, heads, streams]
        y = g.reshape(g.cont(g.permute(y, 0, 2, 1, 3)), config.q_width, columns * streams)
        return self._added(p, x, p.linear(self._weight(layer, "attention.wo.weight"), y), layer, "attention")

    def _feed_forward(self, p: Pass, x: Tensor, layer: int) -> Tensor:
        n = self._norm(p, x, f"layers.{layer}.ffn_norm.weight")
        gate, up = (p.linear(self._weight(layer, f"feed_forward.{part}.weight"), n) for part in ("w1", "w3"))
        y = p.linear(self._weight(layer, "feed_forward.w2.weight"), p.g.swiglu(gate, up))
        return self._added(p, x, y, layer, "ffn")

    def _added(self, p: Pass, x: Tensor, y: Tensor, layer: int, part: str) -> Tensor:
        return p.g.add(x, p.g.mul(y, self._weight(layer, f"{part}_layer_scale.gamma")))

    def _norm(self, p: Pass, x: Tensor, weight: str) -> Tensor:
        return p.g.mul(p.g.rms_norm(x, self._config.norm_eps), self._model.tensor(f"{self._name}.{weight}"))

    def _weight(self, layer: int, part: str) -> Tensor:
        return self._model.tensor(f"{self._name}.layers.{layer}.{part}")


def _rotate(p: Pass, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Neighbours are a pair: (a, b) -> (a cos - b sin, b cos + a sin). The minus is in `sin`."""
    g = p.g
    swapped = g.reshape(g.roll(g.reshape(x, 2, x.n_elements // 2), 1), *x.shape)
    return g.add(g.mul(x, cos), g.mul(swapped, sin))


def _rotation(
    positions: npt.NDArray[np.integer],
    config: CodecTransformerConfig,
    rope: Rope,
    cos: npt.NDArray[np.float32],
    sin: npt.NDArray[np.float32],
) -> None:
    """Fill the tables `[streams, columns, head_dim]` for `positions` `[streams, columns]`."""
    # The official tables are rounded from angles that were computed in float32.
    real = np.dtype(np.float32 if rope == "bf16" else np.float64)
    exponents = np.arange(0, config.head_dim, 2).astype(real) / config.head_dim
    angles = positions[:, :, None].astype(real) * (1 / real.type(config.rope_base) ** exponents)
    for table, values, sign in ((cos, np.cos(angles), 1), (sin, np.sin(angles), -1)):
        rounded = _bf16(values.astype(np.float32)) if rope == "bf16" else values
        table[:, :, 0::2] = sign * rounded
        table[:, :, 1::2] = rounded


def _bf16(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """To the nearest of 8 bits of precision, ties to even."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
