"""Memory for inputs and intermediate results that several graphs take turns in."""

from typing import Any

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.ggml.backend import Backend
from fishs2_daemon.engines.s2.ggml.context import new_context
from fishs2_daemon.errors import EngineError


class Arena:
    """Graphs built into one arena share its memory, and are run one after another: what one leaves there, outputs
    included, the next one overwrites. The largest graph is built first; a larger one that comes later moves the
    memory, and the graphs before it are `stale` and must be built again.

    With `shares_values`, `Graph.inputs` are the same host memory, too: each run fills all of them anew.
    """

    def __init__(self, backend: Backend, *, shares_values: bool = False) -> None:
        self.backend = backend
        self._shares_values = shares_values
        self._values = np.zeros(0, np.uint8)
        #: Changes when the memory moves.
        self.generation = 0
        native = backend.native
        allocator = native.ggml_gallocr_new(backend.buffer_type)
        self._allocator = native.ffi.gc(allocator, native.ggml_gallocr_free)
        self._context = new_context(native, native.ggml_graph_overhead_custom(1, False) + 1024)
        self._nothing = native.ggml_new_graph_custom(self._context, 1, False)
        self._inputs: Any = None
        self._inputs_size = 0
        self._closed = False

    @property
    def n_bytes(self) -> int:
        if self._closed:
            return 0
        return int(self.backend.native.ggml_gallocr_get_buffer_size(self._allocator, 0)) + self._inputs_size

    def inputs(self, size: int) -> Any:
        """A buffer of at least so many bytes for the inputs of a graph, which fills them before each of its runs; NULL
        when the device has not enough memory."""
        native, ffi = self.backend.native, self.backend.native.ffi
        if self._closed:
            raise EngineError("the memory of these graphs was given back")
        if size > self._inputs_size:
            self.generation += 1
            self._release_inputs()
            buffer = native.ggml_backend_buft_alloc_buffer(self.backend.buffer_type, size)
            if buffer == ffi.NULL:
                return buffer
            self._inputs, self._inputs_size = ffi.gc(buffer, native.ggml_backend_buffer_free), size
        return self._inputs

    def values(self, size: int) -> npt.NDArray[np.uint8]:
        """So many bytes of the host's memory for what inputs are filled with; zeros at first."""
        if not self._shares_values:
            return np.zeros(size, np.uint8)
        if size > self._values.size:
            self._values = np.zeros(size, np.uint8)
        return self._values[:size]

    def place(self, graph: Any) -> bool:
        """Give the graph's tensors their addresses; False when the device has not enough memory."""
        if self._closed:
            raise EngineError("the memory of these graphs was given back")
        native, before = self.backend.native, self.n_bytes
        self.backend.synchronize()  # memory that is too small is given back, and may be in use
        # The allocator takes a graph of as many nodes, none of them larger, for the last one once more, and gives its
        # tensors the places of that one's: whichever of them must live longer are overwritten. So it sees another one
        # in between.
        native.ggml_gallocr_alloc_graph(self._allocator, self._nothing)
        placed = bool(native.ggml_gallocr_alloc_graph(self._allocator, graph))
        if self.n_bytes != before or not placed:
            self.generation += 1
        return placed

    def close(self) -> None:
        """Give the memory back; graphs in it are not to be run any more. May be called twice."""
        if not self._closed:
            self._closed = True
            self.generation += 1
            self._release_inputs()
            self.backend.native.ffi.release(self._allocator)
            self.backend.native.ffi.release(self._context)

    def _release_inputs(self) -> None:
        if self._inputs is not None:
            self.backend.synchronize()
            self.backend.native.ffi.release(self._inputs)
            self._inputs, self._inputs_size = None, 0
