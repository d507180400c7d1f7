"""Matrices that lie as the processor's kernels multiply them fastest; ggml calls it repacking.

Which types have such kernels depends on the processor: with AVX2 Q4_K, Q4_0 and IQ4_NL, with Arm's dot products most.
Measured with AVX-512, two threads, 2560 x 9728 of Q4_K: 1.3 times as fast for one column, 1.8 times for eight, 2.3 for
128.
"""

from typing import Any

from fishs2_daemon.engines.s2.ggml.backend import Backend
from fishs2_daemon.engines.s2.ggml.context import new_context
from fishs2_daemon.engines.s2.ggml.dtypes import DType
from fishs2_daemon.engines.s2.ggml.tensor import Shape

#: Others of its kind (AMX) are for servers' processors, and crash with the shapes of a frame.
_NAME = "CPU_REPACK"

#: Kernels take this many rows at a time, or a half or a quarter of that.
_ROWS = 16


def repacks(backend: Backend, dtype: DType, shape: Shape) -> bool:
    """Whether a matrix of this type and shape can lie so on this backend: ggml is asked with a small one."""
    if (buffer_type := repacking_buffer_type(backend)) is None or shape[1] < _ROWS or shape[2:] != (1, 1):
        return False
    native = backend.native
    context = new_context(native, 8 * native.ggml_tensor_overhead())
    width, rows = shape[0], _ROWS + shape[1] % _ROWS
    matrix = native.ggml_new_tensor_4d(context, int(dtype), width, rows, 1, 1)
    buffer = native.ggml_backend_alloc_ctx_tensors_from_buft(context, buffer_type)
    if buffer == native.ffi.NULL:
        return False
    try:
        column = native.ggml_new_tensor_4d(context, int(DType.F32), width, 1, 1, 1)
        product = native.ggml_mul_mat(context, matrix, column)
        return bool(native.ggml_backend_supports_op(backend.pointer, product))
    finally:
        native.ggml_backend_buffer_free(buffer)


def repacking_buffer_type(backend: Backend) -> Any | None:
    """Memory of this kind, where the backend has some."""
    if backend.device != "cpu":
        return None
    native, ffi = backend.native, backend.native.ffi
    device = native.ggml_backend_get_device(backend.pointer)
    registry = native.ggml_backend_dev_backend_reg(device)
    found = native.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    if found == ffi.NULL:
        return None
    types = ffi.cast("ggml_backend_dev_get_extra_bufts_t", found)(device)
    while types[0] != ffi.NULL:
        if bytes(ffi.string(native.ggml_backend_buft_name(types[0]))).decode() == _NAME:
            return types[0]
        types += 1
    return None
