"""A tensor as Python knows it: its pointer, shape, type, strides and the memory it lies in."""

from dataclasses import dataclass
from typing import Any, Protocol

from fishs2_daemon.engines.s2.ggml.dtypes import DType
from fishs2_daemon.errors import EngineError

Shape = tuple[int, int, int, int]

#: ggml keeps a dimension in an `int` in several places.
_LARGEST_DIMENSION = 2**31 - 1
_LARGEST_TENSOR_BYTES = 2**46


class ShapeError(EngineError):
    """An operation was given tensors that it cannot take. ggml would end the process for it."""


class Home(Protocol):
    """What owns a tensor's memory: a store, or the graph that computes the tensor."""

    @property
    def ready(self) -> bool:
        """Whether its tensors may be used: memory is there, and not given back yet."""

    @property
    def device(self) -> str: ...

    @property
    def persistent(self) -> bool:
        """Whether values outlive one run of a graph."""


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """The memory of one tensor that is no view; every view of it shares this object.

    `repacked` is in an order of ggml's own: good for the left operand of `mul_mat` alone.
    """

    home: Home
    n_bytes: int
    pointer: Any
    repacked: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A handle; it owns nothing. It is valid until its home is closed.

    `shape` is in ggml's order (`ne`): the first dimension is the one whose elements lie next to each other, so a
    numpy array of shape [a, b, c] is a tensor of shape (c, b, a, 1). `strides` (`nb`) are bytes per step of each
    dimension, of a whole block for the first one. `offset` is in bytes from the start of the storage.
    """

    pointer: Any
    dtype: DType
    shape: Shape
    strides: Shape
    storage: Storage
    offset: int = 0

    def __str__(self) -> str:
        shape = self.shape
        rank = max((axis + 1 for axis in range(4) if shape[axis] != 1), default=1)
        layout = "" if self.is_contiguous else " strided"
        return f"{self.dtype}{list(shape[:rank])}{layout}"

    @property
    def n_elements(self) -> int:
        a, b, c, d = self.shape
        return a * b * c * d

    @property
    def n_rows(self) -> int:
        return self.n_elements // self.shape[0]

    @property
    def n_bytes(self) -> int:
        """From the first to past the last byte, gaps included."""
        return extent(self.dtype, self.shape, self.strides)

    @property
    def is_view(self) -> bool:
        return bool(self.pointer != self.storage.pointer)

    @property
    def is_contiguous(self) -> bool:
        """Stricter than ggml, which accepts any stride of a dimension of 1, and then has kernels step by it."""
        return self.strides == packed_strides(self.dtype, self.shape)

    @property
    def has_contiguous_rows(self) -> bool:
        """Asked of a row of one element, too: that is what kernels assert."""
        return self.strides[0] == self.dtype.block_bytes

    @property
    def is_contiguous_above_rows(self) -> bool:
        """All rows lie at one distance from each other: half of a wider matrix, for instance."""
        _, first, second, third = self.strides
        return second == first * self.shape[1] and third == second * self.shape[2]


def four(shape: tuple[int, ...]) -> Shape:
    """A shape of one to four positive dimensions, filled with ones."""
    if not 1 <= len(shape) <= 4:
        raise ShapeError(f"a tensor has one to four dimensions, not {list(shape)}")
    for n in shape:
        if not 1 <= n <= _LARGEST_DIMENSION:
            raise ShapeError(f"every dimension is between 1 and {_LARGEST_DIMENSION}, not {list(shape)}")
    a, b, c, d = (*shape, 1, 1, 1)[:4]
    return int(a), int(b), int(c), int(d)


def packed_strides(dtype: DType, shape: Shape) -> Shape:
    """The strides of a contiguous tensor.

    Raises `ShapeError` when rows are no whole number of blocks, or the size is beyond any machine's.
    """
    if shape[0] % dtype.block:
        raise ShapeError(f"rows of {dtype} hold a multiple of {dtype.block} elements, not {shape[0]}")
    first = dtype.block_bytes
    second = dtype.row_bytes(shape[0])
    third = second * shape[1]
    fourth = third * shape[2]
    if fourth * shape[3] > _LARGEST_TENSOR_BYTES:
        raise ShapeError(f"a tensor {dtype}{list(shape)} is too large")
    return first, second, third, fourth


def extent(dtype: DType, shape: Shape, strides: Shape) -> int:
    """Bytes from a tensor's first to past its last element (ggml's `ggml_nbytes`)."""
    if dtype.block == 1:
        first = dtype.block_bytes + (shape[0] - 1) * strides[0]
    else:
        first = shape[0] * strides[0] // dtype.block
    return first + sum((n - 1) * stride for n, stride in zip(shape[1:], strides[1:], strict=True))
