"""A graph: built once, allocated once, run many times."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fishs2_daemon.engines.s2.ggml import transfer
from fishs2_daemon.engines.s2.ggml.arena import Arena
from fishs2_daemon.engines.s2.ggml.backend import Backend
from fishs2_daemon.engines.s2.ggml.context import Contexts, new_context
from fishs2_daemon.engines.s2.ggml.dtypes import DType
from fishs2_daemon.engines.s2.ggml.emit import Node
from fishs2_daemon.engines.s2.ggml.ops_math import MathOps
from fishs2_daemon.engines.s2.ggml.ops_model import ModelOps
from fishs2_daemon.engines.s2.ggml.ops_shape import ShapeOps
from fishs2_daemon.engines.s2.ggml.tensor import Home, ShapeError, Storage, Tensor, extent, four, packed_strides
from fishs2_daemon.errors import EngineError

#: CUDA kernels load up to 16 bytes at once, and its allocations start on multiples of this.
_INPUT_ALIGNMENT = 256
_INPUT_TYPES = (DType.F32, DType.F16, DType.I32, DType.I64)


@dataclass(frozen=True, slots=True)
class _Input:
    tensor: Tensor
    shape: tuple[int, ...]


class GraphBuilder(ShapeOps, MathOps, ModelOps):
    """Collects operations, then builds the graph.

    Operations run in the order in which they are called here. That order alone puts the writes to a store
    (`set_rows`, `copy`) before or after what reads them: ggml knows no edge between the two. What neither an output
    nor a write needs is left out.
    """

    def __init__(self, backend: Backend, name: str) -> None:
        super().__init__(backend, name)
        self._inputs: dict[str, _Input] = {}
        self._outputs: dict[str, Tensor] = {}

    def input(self, name: str, dtype: DType, *shape: int) -> Tensor:
        """A tensor that the host fills before each run: f32, f16, i32 or i64."""
        self._take("input")
        if name in self._inputs:
            raise ShapeError(f"{self.name}: there are two inputs {name}")
        if dtype not in _INPUT_TYPES:
            raise ShapeError(f"{self.name}: input {name} cannot be {dtype}")
        full = four(shape)
        strides = packed_strides(dtype, full)
        pointer = self._native.ggml_new_tensor_4d(self._contexts.room(), int(dtype), *full)
        tensor = Tensor(pointer, dtype, full, strides, Storage(self, extent(dtype, full, strides), pointer))
        self._inputs[name] = _Input(tensor, shape)
        return tensor

    def output(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor's value until the next run, to be read by `name`."""
        self._take("output", tensor)
        if name in self._outputs:
            raise ShapeError(f"{self.name}: there are two outputs {name}")
        # The allocator keeps only what is flagged, and a view's flag says nothing about the memory below it.
        computed = any(tensor is node.tensor for node in reversed(self._nodes))
        kept = tensor if computed and not tensor.is_view else self.cont(tensor)
        self._native.ggml_set_output(kept.pointer)
        self._outputs[name] = kept

    def build(self, arena: Arena | None = None) -> "Graph":
        """The graph, allocated, in the arena's memory or else in its own. The builder takes no more operations.

        Raises `EngineError` when nothing is computed, or the device has not enough memory.
        """
        self._take("build")
        self.ready = False
        nodes = self._needed()
        if not nodes:
            raise EngineError(f"{self.name}: a graph needs an output, or a write to a store")
        self._nodes = []
        parts = self._contexts, nodes, self._inputs, self._outputs, self._row_limits
        return Graph(self._backend, self.name, *parts, arena)

    def _needed(self) -> list[Node]:
        needed = set(self._outputs.values())
        nodes = []
        for node in reversed(self._nodes):
            if node.effect or node.tensor in needed:
                needed.update(node.sources)
                nodes.append(node)
        nodes.reverse()
        return nodes


class Graph:
    """Use `GraphBuilder.build`. Keeps the stores that it reads and writes alive, not open.

    Inputs lie in a buffer of their own, all of it uploaded at once: in the allocator's buffer their memory would be
    reused after their last use, and the second run would read rubbish.
    """

    def __init__(
        self,
        backend: Backend,
        name: str,
        contexts: Contexts,
        nodes: list[Node],
        inputs: dict[str, _Input],
        outputs: dict[str, Tensor],
        row_limits: dict[Storage, int],
        arena: Arena | None,
    ) -> None:
        self.name = name
        #: What the next run takes: fill these arrays in place. Shapes are those of the inputs, reversed.
        self.inputs: dict[str, NDArray[Any]] = {}
        #: What whoever fills `inputs` remembers of them, so as not to fill in again what has not changed.
        self.memo: dict[int, Any] = {}
        #: Operations, views included.
        self.n_nodes = 0
        #: Of those, the ones that compute: on a GPU a kernel each at the most, as some are fused.
        self.n_kernels = sum(node.effect or not node.tensor.is_view for node in nodes)
        #: Device memory that is the graph's own: none where an arena was given.
        self.n_bytes = 0
        self._backend = backend
        self._native = backend.native
        self._contexts = contexts
        self._outputs = outputs
        made = {node.tensor for node in nodes}
        leaves = {source for node in nodes for source in node.sources} - made
        homes = {tensor.storage.home for tensor in leaves}
        self._stores: list[Home] = [home for home in homes if home.persistent]
        self._closed = False
        self._shared = arena
        self._arena = arena or Arena(backend)
        self._place_inputs(inputs)
        self._limits = [
            (key, self.inputs[key].reshape(-1).data, row_limits[value.tensor.storage])
            for key, value in inputs.items()
            if value.tensor.storage in row_limits
        ]
        self._order(nodes, len(leaves))

    @property
    def outputs(self) -> tuple[str, ...]:
        """What can be read."""
        return tuple(self._outputs)

    @property
    def stale(self) -> bool:
        """Whether the arena's memory has moved since the graph was built."""
        return self._arena.generation != self._generation

    def run(self, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Set the named inputs (others keep their values), compute, and read every output."""
        for name, array in inputs.items():
            self.set(name, array)
        self.compute()
        return {name: self.read(name) for name in self.outputs}

    def set(self, name: str, array: NDArray[Any]) -> None:
        """Copy an array of the input's type and reversed shape into `inputs[name]`."""
        place = self.inputs.get(name)
        if place is None:
            raise EngineError(f"{self.name} has no input {name}")
        if array.dtype != place.dtype or array.shape != place.shape:
            takes, given = f"{place.dtype}{list(place.shape)}", f"{array.dtype}{list(array.shape)}"
            raise ShapeError(f"{self.name}: input {name} takes {takes}, not {given}")
        place[...] = array

    def compute(self) -> None:
        """Upload the inputs and compute; returns when it is done."""
        self.start()
        self._backend.synchronize()

    def start(self) -> None:
        """Upload the inputs and start to compute. They may be changed for the next run at once.

        `Backend.synchronize` or `read` waits for the end. On the processor all is done on return.
        Raises `EngineError` when an index input names no row of its table.
        """
        self._check_open()
        self._backend.enter()
        # Not by numpy, whose code is no longer in the processor's caches when a frame was computed.
        for name, values, limit in self._limits:
            if min(values) < 0 or max(values) >= limit:
                raise EngineError(f"{self.name}: input {name} holds {min(values)}..{max(values)} for {limit} rows")
        if self._upload:
            self._upload()
        if status := self._compute():
            raise EngineError(f"{self.name}: computing on {self._backend.device} failed with status {status}")

    def read(self, name: str) -> NDArray[Any]:
        """Wait for the run, and copy an output: the shape is the tensor's reversed, always of four dimensions."""
        self._check_open()
        if name not in self._outputs:
            raise EngineError(f"{self.name} has no output {name}")
        self._backend.synchronize()
        return transfer.read(self._native, self._outputs[name])

    def close(self) -> None:
        """Give the memory back. May be called twice."""
        if not self._closed:
            self._closed = True
            if self._shared is None:
                self._arena.close()
            self._native.ffi.release(self._graph_context)
            self._contexts.close()

    def __enter__(self) -> "Graph":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _place_inputs(self, inputs: dict[str, _Input]) -> None:
        native, ffi = self._native, self._native.ffi
        starts, total = [], 0
        for value in inputs.values():
            starts.append(total)
            total += -(-value.tensor.n_bytes // _INPUT_ALIGNMENT) * _INPUT_ALIGNMENT
        self._staging = self._arena.values(total)
        self._upload: Callable[[], object] | None = None
        if not total:
            return
        buffer = self._arena.inputs(total)
        if buffer == ffi.NULL:
            raise self._out_of_memory()
        base = ffi.cast("char *", native.ggml_backend_buffer_get_base(buffer))
        blob = native.ggml_new_tensor_4d(self._contexts.room(), int(DType.I8), total, 1, 1, 1)
        native.ggml_backend_tensor_alloc(buffer, blob, base)
        # In the stream of the computation: a plain upload takes another one and is not ordered with it.
        values = ffi.from_buffer(self._staging)
        self._upload = partial(native.ggml_backend_tensor_set_async, self._backend.pointer, blob, values, 0, total)
        for start, (name, value) in zip(starts, inputs.items(), strict=True):
            tensor = value.tensor
            native.ggml_backend_tensor_alloc(buffer, tensor.pointer, base + start)
            array = np.frombuffer(self._staging, tensor.dtype.numpy, tensor.n_elements, start)
            self.inputs[name] = array.reshape(tuple(reversed(value.shape)))

    def _order(self, nodes: list[Node], n_leaves: int) -> None:
        native = self._native
        size = max(len(nodes), n_leaves) + 1
        self._graph_context = new_context(native, native.ggml_graph_overhead_custom(size, False) + 1024)
        self._graph = native.ggml_new_graph_custom(self._graph_context, size, False)
        for node in nodes:
            native.ggml_build_forward_expand(self._graph, node.tensor.pointer)
        self.n_nodes = int(native.ggml_graph_n_nodes(self._graph))
        if not self._arena.place(self._graph):
            raise self._out_of_memory()
        self._generation = self._arena.generation
        self._compute = partial(native.ggml_backend_graph_compute_async, self._backend.pointer, self._graph)
        if self._shared is None:
            self.n_bytes += self._arena.n_bytes

    def _check_open(self) -> None:
        is_open = not (self._closed or self.stale or self._backend.closed)
        for store in self._stores:
            is_open = is_open and store.ready
        if not is_open:
            raise EngineError(f"{self.name}: the graph, or a store that it uses, is closed")

    def _out_of_memory(self) -> EngineError:
        return EngineError(f"{self.name}: there is not enough memory on {self._backend.device} for this graph")
