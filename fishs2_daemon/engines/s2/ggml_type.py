"""ggml's tensor types and how they lie in memory, from ggml.h and ggml-common.h of ggml 0.15."""

from enum import IntEnum
from math import prod


class GgmlType(IntEnum):
    """ggml's tensor types that models are made of, by ggml's numbers."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    BF16 = 30

    @property
    def block_items(self) -> int:
        """How many values of a row are stored together: a row's length is a multiple of it."""
        return _BLOCKS[self][0]

    @property
    def block_nbytes(self) -> int:
        return _BLOCKS[self][1]

    @property
    def is_integer(self) -> bool:
        return GgmlType.I8 <= self <= GgmlType.I64

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """What a tensor of this shape takes; its rows are whole blocks."""
        return prod(shape) // self.block_items * self.block_nbytes


_BLOCKS = {
    GgmlType.F32: (1, 4),
    GgmlType.F16: (1, 2),
    GgmlType.Q4_0: (32, 18),
    GgmlType.Q4_1: (32, 20),
    GgmlType.Q5_0: (32, 22),
    GgmlType.Q5_1: (32, 24),
    GgmlType.Q8_0: (32, 34),
    GgmlType.Q2_K: (256, 84),
    GgmlType.Q3_K: (256, 110),
    GgmlType.Q4_K: (256, 144),
    GgmlType.Q5_K: (256, 176),
    GgmlType.Q6_K: (256, 210),
    GgmlType.I8: (1, 1),
    GgmlType.I16: (1, 2),
    GgmlType.I32: (1, 4),
    GgmlType.I64: (1, 8),
    GgmlType.BF16: (1, 2),
}
