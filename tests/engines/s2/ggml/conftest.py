"""What the tests of the binding share: the processor backend of the real library, and a way to compute one thing."""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import cffi
import numpy as np
import pytest

from fishs2_daemon.engines.s2.ggml import Backend, DType, GraphBuilder, Store, Tensor, dequantize, quantize

_DTYPES = {np.dtype(np.float32): DType.F32, np.dtype(np.float16): DType.F16}
_DTYPES |= {np.dtype(np.int32): DType.I32, np.dtype(np.int64): DType.I64}

_HEAD = cffi.FFI()
_HEAD.cdef("struct head { int type; void * buffer; int64_t ne[4]; size_t nb[4]; };")


class Kit:
    """Everything here runs on one backend with two threads, so that kernels split their work."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def compute(self, build: Callable[..., Tensor], *arrays: np.ndarray) -> np.ndarray:
        """The value of what `build(graph, *inputs)` returns, of four dimensions, reversed."""
        g = GraphBuilder(self.backend, "test")
        tensors = [
            g.input(f"in{i}", _DTYPES[array.dtype], *reversed(array.shape or (1,))) for i, array in enumerate(arrays)
        ]
        g.output("out", build(g, *tensors))
        self.check_headers(g)
        with g.build() as graph:
            return graph.run(**{f"in{i}": array for i, array in enumerate(arrays)})["out"]

    def check_headers(self, g: GraphBuilder) -> None:
        """Python's idea of every tensor is ggml's."""
        for node in g._nodes:
            head = _HEAD.cast("struct head *", int(g._native.ffi.cast("uintptr_t", node.tensor.pointer)))
            assert (head.type, *head.ne) == (node.tensor.dtype, *node.tensor.shape), str(node.tensor)
            assert tuple(head.nb) == node.tensor.strides, str(node.tensor)

    def stored(self, values: np.ndarray, dtype: DType = DType.F32) -> tuple[Store, Tensor, np.ndarray]:
        """A store of one tensor, and the values that it really holds after rounding to its type."""
        store = Store(self.backend)
        tensor = store.new(dtype, *reversed(values.shape))
        store.allocate()
        if dtype in (DType.I32, DType.I64):
            store.write(tensor, values.astype(dtype.numpy))
            return store, tensor, values
        rows = quantize(values.astype(np.float32), dtype)
        store.write_bytes(tensor, rows)
        return store, tensor, dequantize(rows, dtype)


@pytest.fixture(scope="session")
def kit() -> Iterator[Kit]:
    spec = importlib.util.find_spec("ggml")
    # This folder itself is found as a namespace package of that name.
    if spec is None or spec.origin is None:
        pytest.skip("ggml-python is not installed")
    with Backend.open("cpu", threads=2) as backend:
        yield Kit(backend)


@pytest.fixture
def builder(kit: Kit) -> GraphBuilder:
    return GraphBuilder(kit.backend, "wrong")


def pytest_make_parametrize_id(val: Any) -> str | None:
    return str(val) if isinstance(val, DType) else None
