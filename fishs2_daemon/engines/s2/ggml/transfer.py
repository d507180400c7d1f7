"""Bytes between numpy and a tensor's memory."""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fishs2_daemon.engines.s2.ggml.dtypes import DType
from fishs2_daemon.engines.s2.ggml.library import Library
from fishs2_daemon.engines.s2.ggml.tensor import ShapeError, Tensor


def check_array(name: str, dtype: DType, shape: tuple[int, ...], array: NDArray[Any]) -> None:
    """`array` is of `dtype`'s numpy type and of `shape` reversed; ones at the outer end may be left out of it."""
    expected = tuple(reversed(shape))
    if array.dtype != dtype.numpy:
        raise ShapeError(f"{name}: a tensor of {dtype} takes {dtype.numpy} values, not {array.dtype}")
    if _without_ones(array.shape) != _without_ones(expected):
        raise ShapeError(
            f"{name}: a tensor of shape {list(shape)} takes an array of {list(expected)}, not {list(array.shape)}"
        )


def write(native: Library, tensor: Tensor, array: NDArray[Any]) -> None:
    """Copy an array, of the reversed shape and the tensor's own numpy type, into a contiguous tensor."""
    if tensor.dtype.is_quantised:
        raise ShapeError(f"write: {tensor} takes quantised bytes (write_bytes), not an array")
    check_array("write", tensor.dtype, tensor.shape, array)
    write_bytes(native, tensor, np.ascontiguousarray(array))


def write_bytes(native: Library, tensor: Tensor, data: Any, offset: int = 0) -> None:
    """Copy a buffer as it is, `offset` bytes into the tensor. Any object with the buffer protocol, a map included."""
    source = native.ffi.from_buffer(data)
    size = len(source)
    if not tensor.is_contiguous:
        raise ShapeError(f"write: {tensor} is not contiguous")
    if offset < 0 or offset + size > tensor.n_bytes:
        raise ShapeError(f"write: {size} bytes at {offset} do not fit into {tensor} of {tensor.n_bytes} bytes")
    if tensor.storage.repacked and size != tensor.n_bytes:
        raise ShapeError(f"write: {tensor} is repacked, which takes all of its {tensor.n_bytes} bytes at once")
    native.ggml_backend_tensor_set(tensor.pointer, source, offset, size)


def read(native: Library, tensor: Tensor) -> NDArray[Any]:
    """A copy of a contiguous tensor, of its shape reversed; of quantised types the bytes of each row."""
    if not tensor.is_contiguous:
        raise ShapeError(f"read: {tensor} is not contiguous")
    if tensor.storage.repacked:
        raise ShapeError(f"read: {tensor} is repacked, and cannot be read")
    shape = list(reversed(tensor.shape))
    if tensor.dtype.is_quantised:
        shape[-1] = tensor.dtype.row_bytes(shape[-1])
    array = np.empty(shape, tensor.dtype.numpy)
    native.ggml_backend_tensor_get(tensor.pointer, native.ffi.from_buffer(array), 0, array.nbytes)
    return array


class Reading:
    """Copies a contiguous tensor to the same place each time: half of the work of `read`. It waits for nothing, and is
    not to be called when the tensor's memory was given back."""

    def __init__(self, native: Library, tensor: Tensor) -> None:
        #: Of the tensor's shape reversed; the next call overwrites it.
        self.array = read(native, tensor)
        into = native.ffi.from_buffer(self.array)
        self._call = partial(native.ggml_backend_tensor_get, tensor.pointer, into, 0, self.array.nbytes)

    def __call__(self) -> NDArray[Any]:
        self._call()
        return self.array


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    first = next((i for i, n in enumerate(shape) if n != 1), len(shape))
    return shape[first:]
