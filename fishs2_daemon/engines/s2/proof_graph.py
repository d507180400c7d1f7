"""What a frame is made of, in small: computed on a backend, and compared with numpy in f64."""

from contextlib import closing
from math import inf, isnan, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fishs2_daemon.engines.s2.config import TransformerConfig
from fishs2_daemon.engines.s2.ggml import Backend, DType, Graph, GraphBuilder, Store, dequantize, quantize
from fishs2_daemon.engines.s2.kv import KvCache
from fishs2_daemon.engines.s2.sizes import CELLS

#: As a share of the largest value. Backends may round the other factor of a product as the weights are rounded: by
#: 0.4 % here. What computes wrongly is off by most of it.
TOLERANCE = 0.02

#: Backends that record graphs do it at the second run, and replay them from the third on.
_RUNS = 4

_WIDTH, _ROWS, _BATCH, _SEEN, _RANKS = 512, 256, 2, 100, 32

#: The row whose product with the first column is the largest by far.
_BEST = 7

#: Rows of S2 Pro's own shape: other head dimensions have other kernels.
_ATTENTION = TransformerConfig(
    layers=1, width=_WIDTH, heads=8, kv_heads=2, head_dim=128, ffn=1, context=CELLS, rope_base=1e6, norm_eps=1e-6
)

Array = NDArray[Any]


def largest_error(backend: Backend) -> tuple[float, str]:
    """The largest difference, as a share of the largest value, and where it is.

    Raises `EngineError` where the backend lacks an operation.
    """
    random = np.random.default_rng(1)
    errors = {**_products(backend, random), **_attention(backend, random)}
    where = max(errors, key=lambda name: errors[name])
    return errors[where], where


def features(backend: Backend) -> tuple[str, ...]:
    """What the backend was built with, by ggml's own names; nothing of one that does not say."""
    native, ffi = backend.native, backend.native.ffi
    registry = native.ggml_backend_dev_backend_reg(native.ggml_backend_get_device(backend.pointer))
    address = native.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_get_features")
    if address == ffi.NULL:
        return ()
    found, names = ffi.cast("ggml_backend_get_features_t", address)(registry), []
    while found.name != ffi.NULL:
        if ffi.string(found.value) != b"0":
            names.append(ffi.string(found.name).decode(errors="replace"))
        found += 1
    return tuple(names)


def _products(backend: Backend, random: np.random.Generator) -> dict[str, float]:
    """Weights times one column and times several, which are different kernels; then what the sampler does."""
    weights = random.standard_normal((_ROWS, _WIDTH)).astype(np.float32)
    errors = {}
    for dtype in (DType.Q8_0, DType.Q4_K, DType.F16):
        stored: Array = quantize(weights, dtype)
        rounded = dequantize(stored, dtype)
        for columns in (1, 16):
            x = random.standard_normal((columns, _WIDTH)).astype(np.float32)
            x[0] += rounded[_BEST] / 4
            got = _multiply(backend, dtype, stored, x)
            expected = {"product": x.astype(np.float64) @ rounded.astype(np.float64).T}  # [columns, rows]
            expected["softmax"] = _soft_max(expected["product"] / _WIDTH)
            expected["order"] = -np.sort(-expected["softmax"], axis=1)[:, :_RANKS]
            got["order"] = np.take_along_axis(expected["softmax"], got["order"].reshape(columns, _RANKS), 1)
            for name, values in expected.items():
                errors[f"{name} of {dtype} with {columns}"] = _error(got[name].reshape(values.shape), values)
            errors[f"argmax of {dtype} with {columns}"] = 0.0 if got["best"].flat[0] == _BEST else inf
    return errors


def _multiply(backend: Backend, dtype: DType, weights: Array, x: Array) -> dict[str, Array]:
    columns = len(x)
    with Store(backend, weights=True) as store:
        table = store.new(dtype, _WIDTH, _ROWS, only_multiplied=True)
        store.allocate()
        store.write_bytes(table, weights)
        g = GraphBuilder(backend, "products")
        y = g.mul_mat(table, g.input("x", DType.F32, _WIDTH, columns), precise=True)  # [rows, columns]
        shares = g.soft_max(y, scale=1 / _WIDTH)
        g.output("product", y)
        g.output("softmax", shares)
        g.output("best", g.argmax(y))
        g.output("order", g.top_k(shares, _RANKS))
        with g.build() as graph:
            return _run(graph, x=x)


def _attention(backend: Backend, random: np.random.Generator) -> dict[str, float]:
    """One new token of each of two sequences, over keys and values that the graph itself has written before."""
    shape = _ATTENTION
    keys, values = (random.standard_normal((_BATCH * CELLS, shape.kv_width)).astype(np.float32) for _ in range(2))
    queries = random.standard_normal((_BATCH, shape.heads, 1, shape.head_dim)).astype(np.float32)
    mask = np.full((_BATCH, 1, _BATCH, CELLS), -np.inf, np.float16)
    mask[..., :_SEEN] = 0
    with closing(KvCache(backend, shape, slots=_BATCH, cells=CELLS, dtype=DType.F16)) as cache:
        g = GraphBuilder(backend, "attention")
        rows = g.input("rows", DType.I64, _BATCH * CELLS)
        k, v = (g.input(name, DType.F32, shape.kv_width, _BATCH * CELLS) for name in ("keys", "values"))
        cache.put(g, 0, k, v, rows)
        q = g.input("queries", DType.F32, shape.head_dim, 1, shape.heads, _BATCH)
        seen = g.input("mask", DType.F16, CELLS, _BATCH, 1, _BATCH)
        g.output("out", cache.attend(g, 0, q, seen, first=0, cells=CELLS))  # [q_width, batch]
        with g.build() as graph:
            got = _run(graph, keys=keys, values=values, rows=np.arange(_BATCH * CELLS), queries=queries, mask=mask)
    expected = np.stack(
        [_attend(queries[n, :, 0], *(_heads(each, n) for each in (keys, values))) for n in range(_BATCH)]
    )
    return {"attention": _error(got["out"].reshape(expected.shape), expected)}


def _heads(table: Array, sequence: int) -> Array:
    """The cells that are seen, for each query head: [heads, cells, head_dim]"""
    shape = _ATTENTION
    part = table[sequence * CELLS :][:_SEEN].astype(np.float16).astype(np.float64)
    heads = part.reshape(_SEEN, shape.kv_heads, shape.head_dim).swapaxes(0, 1)
    return np.repeat(heads, shape.heads // shape.kv_heads, axis=0)


def _attend(queries: Array, keys: Array, values: Array) -> Array:
    scores = np.matmul(keys, queries.astype(np.float64)[..., None])[..., 0] / sqrt(
        _ATTENTION.head_dim
    )  # [heads, cells]
    return np.asarray(np.matmul(_soft_max(scores)[:, None], values)[:, 0])  # [heads, head_dim]


def _soft_max(scores: Array) -> Array:
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _run(graph: Graph, **inputs: Array) -> dict[str, Array]:
    outputs: dict[str, Array] = {}
    for _ in range(_RUNS):
        for name, values in inputs.items():
            graph.set(name, values)
        graph.start()
        for array in graph.inputs.values():
            array[...] = 0  # which `start` allows
        outputs = {name: graph.read(name) for name in graph.outputs}
    return outputs


def _error(got: Array, expected: Array) -> float:
    difference = float(np.abs(got - expected).max() / np.abs(expected).max())
    return inf if isnan(difference) else difference
