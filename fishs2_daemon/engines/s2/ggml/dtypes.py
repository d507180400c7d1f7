"""The element types of ggml that this engine reads, and their sizes.

Values are ggml's own enum. The table repeats ggml's block sizes so that shapes can be checked without a native call;
`library` compares it with the loaded library once.
"""

from enum import IntEnum
from typing import Any

import numpy as np


class DType(IntEnum):
    """A type has `block` elements in `block_bytes` bytes; types with more than one element a block are quantised."""

    block: int
    block_bytes: int
    label: str

    def __new__(cls, value: int, block: int, block_bytes: int, label: str) -> "DType":
        member = int.__new__(cls, value)
        member._value_ = value
        member.block = block
        member.block_bytes = block_bytes
        member.label = label
        return member

    F32 = 0, 1, 4, "f32"
    F16 = 1, 1, 2, "f16"
    Q4_0 = 2, 32, 18, "q4_0"
    Q4_1 = 3, 32, 20, "q4_1"
    Q5_0 = 6, 32, 22, "q5_0"
    Q5_1 = 7, 32, 24, "q5_1"
    Q8_0 = 8, 32, 34, "q8_0"
    Q2_K = 10, 256, 84, "q2_K"
    Q3_K = 11, 256, 110, "q3_K"
    Q4_K = 12, 256, 144, "q4_K"
    Q5_K = 13, 256, 176, "q5_K"
    Q6_K = 14, 256, 210, "q6_K"
    IQ4_NL = 20, 32, 18, "iq4_nl"
    IQ4_XS = 23, 256, 136, "iq4_xs"
    I8 = 24, 1, 1, "i8"
    I32 = 26, 1, 4, "i32"
    I64 = 27, 1, 8, "i64"
    BF16 = 30, 1, 2, "bf16"

    def __str__(self) -> str:
        return self.label

    @property
    def is_quantised(self) -> bool:
        return self.block > 1

    @property
    def is_float(self) -> bool:
        """Plain floating point, one element at a time."""
        return self in (DType.F32, DType.F16, DType.BF16)

    @property
    def numpy(self) -> np.dtype[Any]:
        """How a tensor's bytes lie in a numpy array. bf16 has no numpy type and is held as its 16 bits."""
        return np.dtype(_NUMPY.get(self, np.uint8))

    def row_bytes(self, n: int) -> int:
        """Bytes of `n` elements; `n` is a multiple of `block`."""
        return n // self.block * self.block_bytes


_NUMPY: dict[DType, type[np.generic]] = {
    DType.F32: np.float32,
    DType.F16: np.float16,
    DType.BF16: np.uint16,
    DType.I8: np.int8,
    DType.I32: np.int32,
    DType.I64: np.int64,
}
