"""What all operations share: the checks on their tensors, and the record of what was made in which order."""

from dataclasses import dataclass
from typing import Any, NoReturn

from fishs2_daemon.engines.s2.ggml.backend import Backend
from fishs2_daemon.engines.s2.ggml.context import Contexts
from fishs2_daemon.engines.s2.ggml.dtypes import DType
from fishs2_daemon.engines.s2.ggml.tensor import Shape, ShapeError, Storage, Tensor, extent, packed_strides
from fishs2_daemon.errors import EngineError


class UnsupportedOperation(EngineError):
    """The backend cannot compute an operation that is right in itself."""


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operation: what it made of what. With an `effect` it writes to memory that outlives the graph."""

    tensor: Tensor
    sources: tuple[Tensor, ...]
    effect: bool


class Emitter:
    """Makes nodes. Its families of operations are `ShapeOps`, `MathOps` and `ModelOps`."""

    persistent = False

    def __init__(self, backend: Backend, name: str) -> None:
        self.name = name
        self.device = backend.device
        self.ready = True
        self._backend = backend
        self._native = backend.native
        self._contexts = Contexts(backend.native)
        self._nodes: list[Node] = []
        #: Rows that an index may name, by the storage that holds the index.
        self._row_limits: dict[Storage, int] = {}

    def _emit(
        self,
        operation: str,
        sources: tuple[Tensor, ...],
        dtype: DType,
        shape: Shape,
        function: Any,
        *arguments: Any,
        view: tuple[Storage, int] | None = None,
        strides: Shape | None = None,
        effect: bool = False,
    ) -> Tensor:
        """Call a native constructor whose inputs are known to be right, and record its result.

        `view` is the storage of a result without memory of its own, and its offset there.
        """
        strides = strides or packed_strides(dtype, shape)
        pointer = function(self._contexts.room(), *arguments)
        storage, offset = view or (Storage(self, extent(dtype, shape, strides), pointer), 0)
        tensor = Tensor(pointer, dtype, shape, strides, storage, offset)
        if not self._native.ggml_backend_supports_op(self._backend.pointer, pointer):
            taken = ", ".join(map(str, sources))
            raise UnsupportedOperation(f"{self.name}: {self.device} cannot compute {operation}({taken}) -> {tensor}")
        self._nodes.append(Node(tensor, sources, effect))
        return tensor

    def _take(self, operation: str, *tensors: Tensor) -> None:
        """Every operation calls this first: its tensors must be alive, and on this device."""
        if not self.ready:
            raise EngineError(f"{self.name}: the graph is built and takes no more operations")
        for tensor in tensors:
            home = tensor.storage.home
            if home is not self and (not home.persistent or not home.ready):
                self._refuse(operation, "a tensor of another graph, or of a store that has no memory", *tensors)
            if home.device != self.device:
                self._refuse(operation, f"a tensor lies on {home.device}, not on {self.device}", *tensors)
            if tensor.storage.repacked and (operation != "mul_mat" or tensor is not tensors[0]):
                self._refuse(operation, "a repacked matrix can only be multiplied", *tensors)

    def _require(self, ok: bool, operation: str, reason: str, *tensors: Tensor) -> None:
        if not ok:
            self._refuse(operation, reason, *tensors)

    def _refuse(self, operation: str, reason: str, *tensors: Tensor) -> NoReturn:
        raise ShapeError(f"{self.name}: {operation}({', '.join(map(str, tensors))}): {reason}")

    def _dense(self, operation: str, *tensors: Tensor) -> None:
        """Most kernels take contiguous f32; on CUDA the others end the process, or read past strides."""
        self._take(operation, *tensors)
        for tensor in tensors:
            if tensor.dtype is not DType.F32 or not tensor.is_contiguous:
                self._refuse(operation, "takes contiguous f32", *tensors)

    def _rows(self, operation: str, *tensors: Tensor) -> None:
        """f32 whose rows are contiguous, at any distance from each other."""
        self._take(operation, *tensors)
        for tensor in tensors:
            if tensor.dtype is not DType.F32 or not tensor.has_contiguous_rows:
                self._refuse(operation, "takes f32 with contiguous rows", *tensors)


def repeats(small: Shape, large: Shape) -> bool:
    """Whether `small` fits into `large` a whole number of times in every dimension."""
    return not (large[0] % small[0] or large[1] % small[1] or large[2] % small[2] or large[3] % small[3])
