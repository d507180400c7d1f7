"""Arithmetic on f32: element by element, along rows, and sorting."""

from typing import Any

from fishs2_daemon.engines.s2.ggml.dtypes import DType
from fishs2_daemon.engines.s2.ggml.emit import Emitter, repeats
from fishs2_daemon.engines.s2.ggml.tensor import Tensor

_DESCENDING = 1


class MathOps(Emitter):
    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """a + b, where `b` repeats to the shape of `a`. The same for `sub`, `mul` and `div`."""
        return self._binary("add", self._native.ggml_add, a, b)

    def sub(self, a: Tensor, b: Tensor) -> Tensor:
        return self._binary("sub", self._native.ggml_sub, a, b)

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        return self._binary("mul", self._native.ggml_mul, a, b)

    def div(self, a: Tensor, b: Tensor) -> Tensor:
        return self._binary("div", self._native.ggml_div, a, b)

    def scale(self, a: Tensor, factor: float, bias: float = 0.0) -> Tensor:
        """a * factor + bias"""
        self._dense("scale", a)
        return self._emit("scale", (a,), a.dtype, a.shape, self._native.ggml_scale_bias, a.pointer, factor, bias)

    def sqr(self, a: Tensor) -> Tensor:
        return self._unary("sqr", self._native.ggml_sqr, a)

    def sqrt(self, a: Tensor) -> Tensor:
        return self._unary("sqrt", self._native.ggml_sqrt, a)

    def sin(self, a: Tensor) -> Tensor:
        return self._unary("sin", self._native.ggml_sin, a)

    def cos(self, a: Tensor) -> Tensor:
        return self._unary("cos", self._native.ggml_cos, a)

    def exp(self, a: Tensor) -> Tensor:
        return self._unary("exp", self._native.ggml_exp, a)

    def log(self, a: Tensor) -> Tensor:
        """The natural logarithm; of zero it is minus infinity."""
        return self._unary("log", self._native.ggml_log, a)

    def neg(self, a: Tensor) -> Tensor:
        return self._unary("neg", self._native.ggml_neg, a)

    def step(self, a: Tensor) -> Tensor:
        """1 where a > 0, else 0."""
        return self._unary("step", self._native.ggml_step, a)

    def tanh(self, a: Tensor) -> Tensor:
        return self._unary("tanh", self._native.ggml_tanh, a)

    def silu(self, a: Tensor) -> Tensor:
        """a / (1 + exp(-a))"""
        return self._unary("silu", self._native.ggml_silu, a)

    def gelu_erf(self, a: Tensor) -> Tensor:
        """The exact GELU: a * (1 + erf(a / sqrt 2)) / 2"""
        return self._unary("gelu_erf", self._native.ggml_gelu_erf, a)

    def clamp(self, a: Tensor, low: float, high: float) -> Tensor:
        self._dense("clamp", a)
        self._require(low <= high, "clamp", f"{low} is above {high}", a)
        # ggml clamps in place, which would also change what others read: it gets a copy.
        own = self._emit("cont", (a,), a.dtype, a.shape, self._native.ggml_cont, a.pointer)
        make = self._native.ggml_clamp
        return self._emit("clamp", (own,), a.dtype, a.shape, make, own.pointer, low, high, view=(own.storage, 0))

    def swiglu(self, gate: Tensor, up: Tensor | None = None) -> Tensor:
        """silu(gate) * up. Alone, `gate` holds both: each row its gate half, then its up half."""
        both = (gate,) if up is None else (gate, up)
        self._rows("swiglu", *both)
        above = all(tensor.is_contiguous_above_rows for tensor in both)
        self._require(above, "swiglu", "takes rows at one distance", *both)
        if up is None:
            self._require(gate.shape[0] % 2 == 0, "swiglu", "rows have two halves", gate)
            shape = (gate.shape[0] // 2, *gate.shape[1:])
            return self._emit("swiglu", both, gate.dtype, shape, self._native.ggml_swiglu, gate.pointer)
        self._require(gate.shape == up.shape, "swiglu", "shapes differ", *both)
        make = self._native.ggml_swiglu_split
        return self._emit("swiglu", both, gate.dtype, gate.shape, make, gate.pointer, up.pointer)

    def rms_norm(self, a: Tensor, eps: float) -> Tensor:
        """Each row by the root of its mean square: a / sqrt(mean(a^2) + eps)"""
        return self._norm("rms_norm", self._native.ggml_rms_norm, a, eps)

    def norm(self, a: Tensor, eps: float) -> Tensor:
        """Each row to mean 0 and variance 1: (a - mean) / sqrt(variance + eps)"""
        return self._norm("norm", self._native.ggml_norm, a, eps)

    def sum_rows(self, a: Tensor) -> Tensor:
        """[n, ...] -> [1, ...]"""
        self._dense("sum_rows", a)
        return self._emit("sum_rows", (a,), a.dtype, (1, *a.shape[1:]), self._native.ggml_sum_rows, a.pointer)

    def mean(self, a: Tensor) -> Tensor:
        """[n, ...] -> [1, ...]"""
        self._dense("mean", a)
        return self._emit("mean", (a,), a.dtype, (1, *a.shape[1:]), self._native.ggml_mean, a.pointer)

    def cumsum(self, a: Tensor) -> Tensor:
        """The sum of each row up to and including each element."""
        return self._unary("cumsum", self._native.ggml_cumsum, a)

    def argmax(self, a: Tensor) -> Tensor:
        """The index of each row's largest element: [n, m] -> i32 [m]. Equal ones: the backend's choice."""
        self._dense("argmax", a)
        self._require(a.shape[2:] == (1, 1), "argmax", "takes a matrix", a)
        return self._emit("argmax", (a,), DType.I32, (a.shape[1], 1, 1, 1), self._native.ggml_argmax, a.pointer)

    def top_k(self, a: Tensor, k: int) -> Tensor:
        """The indices of each row's `k` largest elements, largest first: [n, ...] -> i32 [k, ...], a view.

        A whole sort underneath. CUDA sorts rows of up to 1024 in one kernel. Rows with NaN are undefined.
        """
        self._dense("top_k", a)
        self._require(0 < k <= a.shape[0], "top_k", f"rows do not have {k} elements", a)
        order = self._emit("top_k", (a,), DType.I32, a.shape, self._native.ggml_argsort, a.pointer, _DESCENDING)
        shape = (k, *a.shape[1:])
        return self._emit(
            "top_k", (order,), DType.I32, shape, self._native.ggml_view_4d,
            order.pointer, *shape, *order.strides[1:], 0, view=(order.storage, 0), strides=order.strides,
        )  # fmt: skip

    def largest(self, a: Tensor, k: int) -> Tensor:
        """As `top_k`, in no order: [n, ...] -> i32 [k, ...]

        The processor does not sort the others. CUDA sorts all of them, and slowly.
        """
        self._dense("largest", a)
        self._require(0 < k <= a.shape[0], "largest", f"rows do not have {k} elements", a)
        return self._emit("largest", (a,), DType.I32, (k, *a.shape[1:]), self._native.ggml_top_k, a.pointer, k)

    def _binary(self, operation: str, function: Any, a: Tensor, b: Tensor) -> Tensor:
        self._rows(operation, a, b)
        self._require(repeats(b.shape, a.shape), operation, "the second does not repeat to the first", a, b)
        return self._emit(operation, (a, b), a.dtype, a.shape, function, a.pointer, b.pointer)

    def _unary(self, operation: str, function: Any, a: Tensor) -> Tensor:
        self._dense(operation, a)
        return self._emit(operation, (a,), a.dtype, a.shape, function, a.pointer)

    def _norm(self, operation: str, function: Any, a: Tensor, eps: float) -> Tensor:
        self._rows(operation, a)
        self._require(eps >= 0, operation, f"eps is not negative, as {eps} is", a)
        return self._emit(operation, (a,), a.dtype, a.shape, function, a.pointer, eps)
