"""ggml's own quantiser and its inverse, on the processor."""

import numpy as np
from numpy.typing import NDArray

from fishs2_daemon.engines.s2.ggml.dtypes import DType
from fishs2_daemon.engines.s2.ggml.library import library
from fishs2_daemon.engines.s2.ggml.tensor import ShapeError


def quantize(values: NDArray[np.float32], dtype: DType) -> NDArray[np.uint8]:
    """The bytes of each row: [..., n] becomes [..., row bytes], ready for a tensor of `dtype`.

    Raises `ShapeError` when rows are no whole number of blocks, or a value is not finite.
    """
    _check_type("quantize", dtype)
    source = np.ascontiguousarray(values, np.float32)
    if not source.size or source.shape[-1] % dtype.block:
        raise ShapeError(f"quantize: rows of {dtype} hold a multiple of {dtype.block} elements, not {source.shape}")
    if not np.isfinite(source).all():
        raise ShapeError(f"quantize: {dtype} holds finite values only")
    native = library()
    n = source.shape[-1]
    rows = np.empty((*source.shape[:-1], dtype.row_bytes(n)), np.uint8)
    floats = native.ffi.cast("float *", native.ffi.from_buffer(source))
    target = native.ffi.from_buffer(rows)
    native.ggml_quantize_chunk(int(dtype), floats, target, 0, source.size // n, n, native.ffi.NULL)
    return rows


def dequantize(rows: NDArray[np.uint8], dtype: DType) -> NDArray[np.float32]:
    """The values of rows of bytes: [..., row bytes] becomes [..., n]."""
    _check_type("dequantize", dtype)
    source = np.ascontiguousarray(rows, np.uint8)
    if not source.size or source.shape[-1] % dtype.block_bytes:
        raise ShapeError(
            f"dequantize: rows of {dtype} are whole blocks of {dtype.block_bytes} bytes, not {source.shape}"
        )
    if dtype is DType.F32:
        return source.view(np.float32)
    native = library()
    n = source.shape[-1] // dtype.block_bytes * dtype.block
    values = np.empty((*source.shape[:-1], n), np.float32)
    floats = native.ffi.cast("float *", native.ffi.from_buffer(values))
    native.ggml_get_type_traits(int(dtype)).to_float(native.ffi.from_buffer(source), floats, values.size)
    return values


def _check_type(operation: str, dtype: DType) -> None:
    if not (dtype.is_quantised or dtype.is_float):
        raise ShapeError(f"{operation}: {dtype} is no type of weights")
