"""The layers that the slow and the fast transformer and the codec share (specification, sections 2.1 and 7.1)."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.config import TransformerConfig
from tests.engines.s2.reference.weights import Array, Model

#: "bf16": sines and cosines rounded as the official engines do, of angles computed in F32 like theirs.
Rope = Literal["exact", "bf16"]


@dataclass(slots=True)
class Cache:
    """What a stack of layers carries from call to call: how many positions have passed, and for each layer the keys
    (after rotation) and values of those that later ones can see, `[S, Hk, Dh]`."""

    position: int = 0
    keys: dict[int, Array] = field(default_factory=dict)
    values: dict[int, Array] = field(default_factory=dict)

    def copy(self) -> "Cache":
        """The arrays are replaced and never changed in place, so they can be shared."""
        return Cache(self.position, dict(self.keys), dict(self.values))


class Transformer:
    """Pre-norm layers `{prefix}layers.0` and on. A position sees `window` positions, itself included; without one, all
    before it."""

    def __init__(
        self, model: Model, prefix: str, config: TransformerConfig, rope: Rope, window: int | None = None
    ) -> None:
        self._model, self._prefix, self._config, self._rope, self._window = model, prefix, config, rope, window

    def __call__(self, x: Array, cache: Cache) -> Array:
        """`[T, D]` at the next T positions, without the final norm."""
        positions = np.arange(cache.position, cache.position + len(x))
        tables = rope_tables(positions, self._config.head_dim, self._config.rope_base, self._rope, x.dtype)
        for layer in range(self._config.layers):
            name = f"{self._prefix}layers.{layer}"
            x = x + self._scaled(self._attention(x, layer, tables, cache), f"{name}.attention_layer_scale.gamma")
            x = x + self._scaled(self._feed_forward(x, layer), f"{name}.ffn_layer_scale.gamma")
        cache.position += len(x)
        return x

    def norm(self, x: Array) -> Array:
        """The final one, of the codec's stacks; `norm.weight` and `fast_norm.weight` are named alike."""
        return self._norm(x, f"{self._prefix}norm.weight")

    def _norm(self, x: Array, name: str) -> Array:
        return rms_norm(x, self._model[name], self._config.norm_eps)

    def _scaled(self, y: Array, gamma: str) -> Array:
        scale = self._model.get(gamma)
        return y if scale is None else y * scale

    def _attention(self, x: Array, layer: int, tables: tuple[Array, Array], cache: Cache) -> Array:
        config, name = self._config, f"{self._prefix}layers.{layer}.attention"
        h = self._norm(x, f"{self._prefix}layers.{layer}.attention_norm.weight")
        qkv = linear(h, self._model[f"{name}.wqkv.weight"], self._model.get(f"{name}.wqkv.bias"))
        q, k, v = np.split(qkv, [config.q_width, config.q_width + config.kv_width], axis=1)
        q = q.reshape(len(x), config.heads, config.head_dim)
        k = k.reshape(len(x), config.kv_heads, config.head_dim)
        v = v.reshape(len(x), config.kv_heads, config.head_dim)
        if config.qk_norm:  # over each head, before the rotation
            q, k = self._norm(q, f"{name}.q_norm.weight"), self._norm(k, f"{name}.k_norm.weight")
        q, k = rotate(q, *tables), rotate(k, *tables)
        if layer in cache.keys:
            k = np.concatenate([cache.keys[layer], k])  # [S, Hk, Dh]
            v = np.concatenate([cache.values[layer], v])
        kept = len(k) if self._window is None else self._window - 1
        cache.keys[layer], cache.values[layer] = k[max(0, len(k) - kept) :], v[max(0, len(v) - kept) :]
        out = attention(q, k, v, self._window)
        return linear(out.reshape(len(x), -1), self._model[f"{name}.wo.weight"], self._model.get(f"{name}.wo.bias"))

    def _feed_forward(self, x: Array, layer: int) -> Array:
        name = f"{self._prefix}layers.{layer}"
        n = self._norm(x, f"{name}.ffn_norm.weight")
        gate, up = (linear(n, self._model[f"{name}.feed_forward.{w}.weight"]) for w in ("w1", "w3"))
        return linear(silu(gate) * up, self._model[f"{name}.feed_forward.w2.weight"])


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    y = x @ weight.T
    return y if bias is None else y + bias


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def silu(x: Array) -> Array:
    return x * (1 + np.tanh(x / 2)) / 2  # x * sigmoid(x), and nothing that overflows


def rope_tables(
    positions: npt.NDArray[np.integer], head_dim: int, base: float, rope: Rope, dtype: npt.DTypeLike
) -> tuple[Array, Array]:
    """Cosines and sines of `position * base ** (-2i / head_dim)`, both `[T, 1, head_dim / 2]`."""
    real: npt.DTypeLike = np.float64 if rope == "exact" else np.float32
    exponents = np.arange(0, head_dim, 2, dtype=real) / head_dim
    angles = positions[:, None, None].astype(real) * (1 / base**exponents)
    cos, sin = np.cos(angles), np.sin(angles)
    if rope == "bf16":
        cos, sin = _bf16(cos), _bf16(sin)
    return cos.astype(dtype), sin.astype(dtype)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Neighbours are a pair: `x[2i]` and `x[2i + 1]`. `[T, heads, Dh]`"""
    even, odd = x[..., 0::2], x[..., 1::2]
    return np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)


def attention(q: Array, k: Array, v: Array, window: int | None) -> Array:
    """The T queries are the last of the S positions. `[T, H, Dh]` on `[S, Hk, Dh]`"""
    group = q.shape[1] // k.shape[1]  # query head j uses key/value head j // group
    k, v = (np.repeat(y, group, axis=1).transpose(1, 0, 2) for y in (k, v))  # [H, S, Dh]
    scores = q.transpose(1, 0, 2) @ k.transpose(0, 2, 1) / q.shape[2] ** 0.5  # [H, T, S]
    age = np.arange(len(q))[:, None] + (k.shape[1] - len(q)) - np.arange(k.shape[1])
    visible = (age >= 0) & (age < (window or k.shape[1]))
    weights = softmax(np.where(visible, scores, -np.inf))
    return (weights @ v).transpose(1, 0, 2)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _bf16(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """To the nearest of 8 bits of precision, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
