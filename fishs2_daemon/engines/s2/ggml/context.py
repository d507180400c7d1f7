"""Room for tensor headers. ggml ends the process when a context is full, so there is always another one."""

from typing import Any

from fishs2_daemon.engines.s2.ggml.library import Library
from fishs2_daemon.errors import EngineError

_TENSORS_EACH = 512


class Contexts:
    """A growing row of ggml contexts that hold headers only; the tensors' memory lies in device buffers."""

    def __init__(self, native: Library) -> None:
        #: Contexts made so far. None is without a tensor.
        self.all: list[Any] = []
        self._native = native
        self._left = 0

    def room(self) -> Any:
        """A context with room for one tensor more; call it for every tensor."""
        if not self._left:
            self.all.append(new_context(self._native, _TENSORS_EACH * self._native.ggml_tensor_overhead()))
            self._left = _TENSORS_EACH
        self._left -= 1
        return self.all[-1]

    def close(self) -> None:
        for context in self.all:
            self._native.ffi.release(context)
        self.all.clear()
        self._left = 0


def new_context(native: Library, n_bytes: int) -> Any:
    """A context of headers, freed with its last reference."""
    parameters = native.ffi.new("struct ggml_init_params *", {"mem_size": n_bytes, "no_alloc": True})
    context = native.ggml_init(parameters[0])
    if context == native.ffi.NULL:
        raise EngineError(f"there are not {n_bytes} bytes of memory left")
    return native.ffi.gc(context, native.ggml_free)
