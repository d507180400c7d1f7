"""Matrix products, attention and convolutions."""

from math import isfinite

from fishs2_daemon.engines.s2.ggml.dtypes import DType
from fishs2_daemon.engines.s2.ggml.emit import Emitter
from fishs2_daemon.engines.s2.ggml.tensor import Tensor, four

#: ggml's own CUDA kernels for f16 multiply so many columns at the most.
_OWN_COLUMNS = 16

_PRECISION_F32 = 10

#: CUDA has kernels for these widths, and ends the process for any other.
_SSM_WIDTHS = (3, 4, 5, 9, 15)


class ModelOps(Emitter):
    def mul_mat(self, w: Tensor, x: Tensor, *, precise: bool = False) -> Tensor:
        """`w` [k, n, b, c] times `x` [k, m, b', c'] -> f32 [n, m, b', c']; `w` repeats over b' and c'.

        `w` is of any type, `x` is f32, contiguous where `w` is repacked, or f16 as `w` is. `precise` forbids CUDA
        to accumulate f16 products in f16.
        """
        self._take("mul_mat", w, x)
        good = w.has_contiguous_rows and x.has_contiguous_rows
        good = good and (w.dtype.is_float or w.dtype.is_quantised)
        good = good and (x.dtype is DType.F32 or (x.dtype is DType.F16 and w.dtype is DType.F16))
        self._require(good, "mul_mat", "takes weights and f32 (or f16 twice) with contiguous rows", w, x)
        same = w.shape[0] == x.shape[0] and not (x.shape[2] % w.shape[2] or x.shape[3] % w.shape[3])
        self._require(same, "mul_mat", "shapes do not belong together", w, x)
        packed = x.is_contiguous and x.dtype is DType.F32 and x.shape[2:] == (1, 1)
        self._require(packed or not w.storage.repacked, "mul_mat", "repacked weights take contiguous f32", w, x)
        shape = (w.shape[1], *x.shape[1:])
        result = self._emit("mul_mat", (w, x), DType.F32, shape, self._native.ggml_mul_mat, w.pointer, x.pointer)
        if precise and not self._widens(w, x):
            self._native.ggml_mul_mat_set_prec(result.pointer, _PRECISION_F32)
        return result

    def _widens(self, w: Tensor, x: Tensor) -> bool:
        """Whether CUDA would make f32 of all of `w` for the sake of precision. It need not: cuBLAS, which multiplies
        more columns than ggml's own kernels, was told to sum up in f32 (`Library`)."""
        return self.device != "cpu" and w.dtype is DType.F16 and w.shape[2:] == (1, 1) and x.shape[1] > _OWN_COLUMNS

    def soft_max(self, a: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        """Over each row of a * scale + mask.

        `mask` f16 or f32 [n, m, b, c] has at least as many rows as `a`, and repeats over `a`'s outer dimensions.
        """
        self._dense("soft_max", a)
        every: tuple[Tensor, ...] = (a,)
        if mask is not None:
            every = (a, mask)
            self._take("soft_max", *every)
            good = mask.dtype in (DType.F32, DType.F16) and mask.is_contiguous
            self._require(good, "soft_max", "takes a contiguous f32 or f16 mask", *every)
            good = mask.shape[0] == a.shape[0] and mask.shape[1] >= a.shape[1]
            good = good and not (a.shape[2] % mask.shape[2] or a.shape[3] % mask.shape[3])
            self._require(good, "soft_max", "the mask does not fit", *every)
        pointer = self._native.ffi.NULL if mask is None else mask.pointer
        make = self._native.ggml_soft_max_ext
        return self._emit("soft_max", every, a.dtype, a.shape, make, a.pointer, pointer, scale, 0.0)

    def rope(self, x: Tensor, positions: Tensor, base: float) -> Tensor:
        """Rotate pairs (x[2i], x[2i+1]) of f32 [width, heads, tokens, b] by position * base^(-2i/width).

        `positions` is i32 [tokens]. Angles are exact f32.
        """
        self._rows("rope", x)
        self._take("rope", x, positions)
        good = positions.dtype is DType.I32 and positions.is_contiguous and positions.shape[1:] == (1, 1, 1)
        good = good and positions.shape[0] == x.shape[2]
        self._require(good, "rope", "takes one i32 position for each token (third dimension)", x, positions)
        self._require(x.shape[0] % 2 == 0, "rope", "rotates pairs", x, positions)
        self._require(base > 0 and isfinite(base), "rope", f"cannot use the base {base}", x, positions)
        make, none, width = self._native.ggml_rope_ext, self._native.ffi.NULL, x.shape[0]
        interleaved, unscaled = 0, (1.0, 0.0, 1.0, 0.0, 0.0)
        return self._emit(
            "rope", (x, positions), x.dtype, x.shape, make,
            x.pointer, positions.pointer, none, width, interleaved, 0, base, *unscaled,
        )  # fmt: skip

    def flash_attn(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, *, precise: bool = False
    ) -> Tensor:
        """softmax(q k^T * scale + mask) v, by groups of query heads over one key head.

        `q` f32 [width, tokens, heads, b], `k` [width, cells, kv heads, b], `v` [width_v, cells, kv heads, b], both
        f32 or both f16, `mask` f16 [cells, tokens or more, 1 or heads, 1 or b] -> f32 [width_v, heads, tokens, b].
        Every query must see one cell at least. CUDA takes few widths (64, 80, 96, 128, 256), and wants cells in
        multiples of 256 to be fast.
        """
        every = (q, k, v) if mask is None else (q, k, v, mask)
        self._take("flash_attn", *every)
        good = q.has_contiguous_rows and k.has_contiguous_rows and v.has_contiguous_rows
        good = good and q.dtype is DType.F32 and k.dtype is v.dtype and k.dtype in (DType.F32, DType.F16)
        self._require(good, "flash_attn", "takes f32 queries, and f32 or f16 keys and values", *every)
        same = q.shape[0] == k.shape[0] and k.shape[1:] == v.shape[1:]
        same = same and q.shape[2] % k.shape[2] == 0 and q.shape[3] == k.shape[3]
        self._require(same, "flash_attn", "shapes do not belong together", *every)
        if mask is not None:
            self._require(mask.dtype is DType.F16 and mask.is_contiguous, "flash_attn", "takes an f16 mask", *every)
            good = mask.shape[0] == k.shape[1] and mask.shape[1] >= q.shape[1]
            good = good and not (q.shape[2] % mask.shape[2] or q.shape[3] % mask.shape[3])
            self._require(good, "flash_attn", "the mask does not fit", *every)
        pointer = self._native.ffi.NULL if mask is None else mask.pointer
        shape = (v.shape[0], q.shape[2], q.shape[1], q.shape[3])
        result = self._emit(
            "flash_attn", every, DType.F32, shape, self._native.ggml_flash_attn_ext,
            q.pointer, k.pointer, v.pointer, pointer, scale, 0.0, 0.0,
        )  # fmt: skip
        if precise:
            self._native.ggml_flash_attn_ext_set_prec(result.pointer, _PRECISION_F32)
        return result

    def im2col(
        self, kernel: Tensor, x: Tensor, *, stride: int = 1, padding: int = 0, dilation: int = 1, dtype: DType
    ) -> Tensor:
        """The windows of a 1-D convolution: f32 `x` [time, channels, b] -> f32 or f16 [channels * k, steps, b].

        `kernel` [k, channels, ...] gives its shape only; for f16 windows it is f16 itself.
        """
        self._dense("im2col", x)
        self._take("im2col", kernel, x)
        good = kernel.shape[1] == x.shape[1] and x.shape[3] == 1
        self._require(good, "im2col", "shapes do not belong together", kernel, x)
        good = dtype is DType.F32 or (dtype is DType.F16 and kernel.dtype is DType.F16)
        good = good and kernel.has_contiguous_rows
        self._require(good, "im2col", f"does not make {dtype} with this kernel", kernel, x)
        steps = self._steps("im2col", x, x.shape[0], kernel.shape[0], stride, padding, dilation)
        shape = four((x.shape[1] * kernel.shape[0], steps, x.shape[2]))
        return self._emit(
            "im2col", (kernel, x), dtype, shape, self._native.ggml_im2col,
            kernel.pointer, x.pointer, stride, 0, padding, 0, dilation, 0, False, int(dtype),
        )  # fmt: skip

    def col2im_1d(self, columns: Tensor, *, stride: int, channels: int, crop: int = 0) -> Tensor:
        """Add up overlapping windows: f32 [channels * k, time] -> [(time - 1) * stride + k - 2 * crop, channels].

        Row order within a column: all k taps of channel 0, then of channel 1, ...
        """
        self._dense("col2im_1d", columns)
        good = columns.shape[2:] == (1, 1) and stride > 0 and crop >= 0 and channels > 0
        good = good and columns.shape[0] % channels == 0
        self._require(good, "col2im_1d", f"is no matrix of columns for {channels} channels", columns)
        length = (columns.shape[1] - 1) * stride + columns.shape[0] // channels - 2 * crop
        self._require(length > 0, "col2im_1d", f"nothing is left after cropping {crop}", columns)
        make = self._native.ggml_col2im_1d
        shape = four((length, channels))
        return self._emit("col2im_1d", (columns,), columns.dtype, shape, make, columns.pointer, stride, channels, crop)

    def depthwise_conv(
        self, kernel: Tensor, x: Tensor, *, stride: int = 1, padding: int = 0, dilation: int = 1
    ) -> Tensor:
        """One filter for each channel: f32 `x` [time, 1, channels, b] -> [steps, 1, channels, b].

        `kernel` is f32 [k, 1, 1, channels].
        """
        self._dense("depthwise_conv", kernel, x)
        good = kernel.shape[1:3] == (1, 1) and x.shape[1] == 1 and kernel.shape[3] == x.shape[2]
        self._require(good, "depthwise_conv", "shapes do not belong together", kernel, x)
        steps = self._steps("depthwise_conv", x, x.shape[0], kernel.shape[0], stride, padding, dilation)
        shape = four((steps, 1, x.shape[2], x.shape[3]))
        return self._emit(
            "depthwise_conv", (kernel, x), x.dtype, shape, self._native.ggml_conv_2d_dw_direct,
            kernel.pointer, x.pointer, stride, 1, padding, 0, dilation, 1,
        )  # fmt: skip

    def ssm_conv(self, x: Tensor, kernel: Tensor) -> Tensor:
        """A depthwise convolution that also transposes: f32 `x` [time + k - 1, channels, b] -> [channels, time, b].

        `kernel` is f32 [k, channels], k one of 3, 4, 5, 9, 15. CUDA takes multiples of 128 channels.
        """
        self._dense("ssm_conv", x, kernel)
        good = x.shape[3] == 1 and kernel.shape[2:] == (1, 1) and kernel.shape[1] == x.shape[1]
        self._require(good and x.shape[0] >= kernel.shape[0], "ssm_conv", "shapes do not belong together", x, kernel)
        self._require(kernel.shape[0] in _SSM_WIDTHS, "ssm_conv", f"takes {_SSM_WIDTHS} taps", x, kernel)
        shape = (x.shape[1], x.shape[0] - kernel.shape[0] + 1, x.shape[2], 1)
        return self._emit(
            "ssm_conv", (x, kernel), x.dtype, shape, self._native.ggml_ssm_conv, x.pointer, kernel.pointer
        )

    def _steps(
        self, operation: str, x: Tensor, length: int, taps: int, stride: int, padding: int, dilation: int
    ) -> int:
        """How many windows a convolution has."""
        self._require(stride > 0 and dilation > 0 and padding >= 0, operation, "steps are positive", x)
        room = length + 2 * padding - dilation * (taps - 1) - 1
        self._require(room >= 0, operation, f"is shorter than {taps} taps", x)
        return room // stride + 1
