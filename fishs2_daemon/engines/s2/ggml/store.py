"""Tensors whose values stay: weights, keys and values, the state of a codec stream."""

from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from fishs2_daemon.engines.s2.ggml import transfer
from fishs2_daemon.engines.s2.ggml.backend import Backend
from fishs2_daemon.engines.s2.ggml.context import Contexts
from fishs2_daemon.engines.s2.ggml.dtypes import DType
from fishs2_daemon.engines.s2.ggml.repack import repacking_buffer_type, repacks
from fishs2_daemon.engines.s2.ggml.tensor import ShapeError, Storage, Tensor, extent, four, packed_strides
from fishs2_daemon.errors import EngineError

_USAGE_WEIGHTS = 1


class Store:
    """Declare every tensor with `new`, then `allocate` once; after that they can be written, read and used in graphs.

    All tensors lie in device buffers of their own, which no graph's allocator touches. Writing and reading wait for
    what was started on `backend`; what another backend does with these tensors is the caller's to wait for.
    """

    persistent = True

    def __init__(self, backend: Backend, *, weights: bool = False) -> None:
        """`weights` promises that graphs only read these tensors."""
        self.device = backend.device
        #: Bytes on the device, padding included; 0 before `allocate`.
        self.n_bytes = 0
        self._backend = backend
        self._native = backend.native
        self._weights = weights
        self._contexts = Contexts(self._native)
        self._repacked = Contexts(self._native)
        self._buffers: list[Any] = []
        self._state = "declared"

    @property
    def ready(self) -> bool:
        return self._state == "allocated"

    def new(self, dtype: DType, *shape: int, only_multiplied: bool = False) -> Tensor:
        """Declare a tensor. Raises `ShapeError` when the shape is impossible for the type.

        One that is `only_multiplied`, and written once and whole, is repacked where that is faster.
        """
        self._require("declared")
        full = four(shape)
        strides = packed_strides(dtype, full)
        repacked = only_multiplied and repacks(self._backend, dtype, full)
        context = (self._repacked if repacked else self._contexts).room()
        pointer = self._native.ggml_new_tensor_4d(context, int(dtype), *full)
        storage = Storage(self, extent(dtype, full, strides), pointer, repacked)
        return Tensor(pointer, dtype, full, strides, storage)

    def allocate(self) -> None:
        """Take the memory and set it to zeros. Raises `EngineError` when the device has not enough."""
        self._require("declared")
        native, ffi = self._native, self._native.ffi
        kinds = [(context, self._backend.buffer_type) for context in self._contexts.all]
        kinds += [(context, repacking_buffer_type(self._backend)) for context in self._repacked.all]
        for context, kind in kinds:
            buffer = native.ggml_backend_alloc_ctx_tensors_from_buft(context, kind)
            if buffer == ffi.NULL:
                self.close()
                raise EngineError(f"there is not enough memory on {self.device} for the model's tensors")
            self._buffers.append(ffi.gc(buffer, native.ggml_backend_buffer_free))
            native.ggml_backend_buffer_clear(buffer, 0)
            if self._weights:
                native.ggml_backend_buffer_set_usage(buffer, _USAGE_WEIGHTS)
            self.n_bytes += native.ggml_backend_buffer_get_size(buffer)
        self._state = "allocated"

    def write(self, tensor: Tensor, array: NDArray[Any]) -> None:
        """Copy an array of the tensor's numpy type, shape reversed, into it."""
        self._check(tensor)
        transfer.write(self._native, tensor, array)

    def write_bytes(self, tensor: Tensor, data: Any, offset: int = 0) -> None:
        """Copy raw bytes, from any buffer, `offset` bytes into the tensor."""
        self._check(tensor)
        transfer.write_bytes(self._native, tensor, data, offset)

    def zero(self, tensor: Tensor, offset: int, n_bytes: int) -> None:
        """Set some of the tensor's bytes to zeros."""
        self._check(tensor)
        if offset < 0 or n_bytes < 0 or offset + n_bytes > tensor.n_bytes:
            raise ShapeError(f"zero: {n_bytes} bytes at {offset} do not lie in {tensor} of {tensor.n_bytes} bytes")
        self._native.ggml_backend_tensor_memset(tensor.pointer, 0, offset, n_bytes)

    def read(self, tensor: Tensor) -> NDArray[Any]:
        """A copy of the tensor, shape reversed; bf16 as its 16 bits, quantised types as the bytes of each row."""
        self._check(tensor)
        return transfer.read(self._native, tensor)

    def clear(self) -> None:
        """Set every tensor to zeros."""
        self._require("allocated")
        self._backend.synchronize()
        for buffer in self._buffers:
            self._native.ggml_backend_buffer_clear(buffer, 0)

    def close(self) -> None:
        """Give the memory back; graphs over these tensors must not run any more. May be called twice."""
        if self._state != "closed":
            self._state = "closed"
            for buffer in self._buffers:
                self._native.ffi.release(buffer)
            self._contexts.close()
            self._repacked.close()

    def _check(self, tensor: Tensor) -> None:
        # A view's header belongs to the graph that made it, and may be gone.
        if tensor.storage.home is not self or tensor.is_view:
            raise EngineError(f"{tensor} was not made by this store")
        self._require("allocated")
        self._backend.synchronize()

    def _require(self, state: str) -> None:
        if self._state != state:
            raise EngineError(f"the store is {self._state}, and must be {state} for this")

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
