"""Operations that look at tensors differently, move them, or pick from them.

Every result's shape is in ggml's order; comments give it as [ne0, ne1, ...].
"""

from fishs2_daemon.engines.s2.ggml.dtypes import DType
from fishs2_daemon.engines.s2.ggml.emit import Emitter, repeats
from fishs2_daemon.engines.s2.ggml.tensor import Shape, Storage, Tensor, extent, four, packed_strides

_MOVABLE = (DType.F32, DType.F16, DType.BF16, DType.I32)


class ShapeOps(Emitter):
    def view(self, a: Tensor, shape: tuple[int, ...], strides: tuple[int, ...] = (), offset: int = 0) -> Tensor:
        """A window on `a`'s memory: `strides` in bytes for dimensions 1, 2, 3 (the rest packed), `offset` in bytes.

        It must lie within the memory that `a` is part of, and no two of its elements may share a byte.
        """
        self._take("view", a)
        full = four(shape)
        nb = _complete(full, packed_strides(a.dtype, full), strides)
        unit, start = a.dtype.block_bytes, a.offset + offset
        self._require(len(strides) < 4, "view", "has at most three strides, of dimensions 1, 2 and 3", a)
        self._require(a.has_contiguous_rows, "view", "the first dimension of a transposed tensor is strided", a)
        self._require(not any(n % unit for n in (offset, *nb)), "view", f"bytes are whole multiples of {unit}", a)
        where = f"{list(full)} with strides {list(nb)} at byte {offset}"
        self._require(min(offset, *nb) >= 0 and not _overlaps(a.dtype, full, nb), "view", f"{where} overlaps itself", a)
        # ggml asks the second for packed strides, whatever the real ones are.
        last = start + max(extent(a.dtype, full, nb), extent(a.dtype, full, packed_strides(a.dtype, full)))
        size = a.storage.n_bytes
        self._require(last <= size, "view", f"{where} reaches to byte {last} of {size}", a)
        make = self._native.ggml_view_4d
        return self._emit(
            "view", (a,), a.dtype, full, make, a.pointer, *full, *nb[1:], offset, view=(a.storage, start), strides=nb
        )

    def narrow(self, a: Tensor, axis: int, start: int, length: int) -> Tensor:
        """`length` entries of one dimension from `start` on, as a view."""
        self._take("narrow", a)
        self._require(0 <= axis < 4, "narrow", f"there is no axis {axis}", a)
        inside = 0 <= start < start + length <= a.shape[axis]
        self._require(inside, "narrow", f"{start}..{start + length} is not within axis {axis}", a)
        whole = axis or not (start % a.dtype.block or length % a.dtype.block)
        self._require(bool(whole), "narrow", f"a row is cut at multiples of {a.dtype.block}", a)
        shape = [*a.shape]
        shape[axis] = length
        offset = start // a.dtype.block * a.strides[0] if axis == 0 else start * a.strides[axis]
        return self.view(a, tuple(shape), a.strides[1:], offset)

    def reshape(self, a: Tensor, *shape: int) -> Tensor:
        """The same contiguous memory under another shape."""
        self._take("reshape", a)
        full = four(shape)
        same = full[0] * full[1] * full[2] * full[3] == a.n_elements
        self._require(a.is_contiguous and same, "reshape", f"is not contiguous, or does not make {list(full)}", a)
        packed_strides(a.dtype, full)
        return self._emit(
            "reshape", (a,), a.dtype, full, self._native.ggml_reshape_4d, a.pointer, *full, view=(a.storage, a.offset)
        )

    def permute(self, a: Tensor, axis0: int, axis1: int, axis2: int, axis3: int) -> Tensor:
        """`a`'s dimension i becomes dimension `axis_i` of the result, as a view; contiguous if only ones moved."""
        self._take("permute", a)
        axes = (axis0, axis1, axis2, axis3)
        self._require(sorted(axes) == [0, 1, 2, 3], "permute", f"axes are 0, 1, 2, 3 in some order, not {axes}", a)
        self._require(not a.dtype.is_quantised, "permute", "quantised rows stay rows", a)
        shape, strides = [1] * 4, [0] * 4
        for source, target in enumerate(axes):
            shape[target], strides[target] = a.shape[source], a.strides[source]
        moved = [axes[source] for source in range(4) if a.shape[source] > 1]
        if a.is_contiguous and moved == sorted(moved):
            return self.reshape(a, *shape)
        return self._emit(
            "permute", (a,), a.dtype, _four(shape), self._native.ggml_permute, a.pointer, *axes,
            view=(a.storage, a.offset), strides=_four(strides),
        )  # fmt: skip

    def transpose(self, a: Tensor) -> Tensor:
        """The first two dimensions swapped, as a view."""
        return self.permute(a, 1, 0, 2, 3)

    def cont(self, a: Tensor) -> Tensor:
        """A contiguous copy."""
        self._movable("cont", a)
        return self._emit("cont", (a,), a.dtype, a.shape, self._native.ggml_cont, a.pointer)

    def cast(self, a: Tensor, dtype: DType) -> Tensor:
        """A contiguous copy in another type; a float becomes an integer by truncation."""
        self._take("cast", a)
        self._require(_converts(a.dtype, dtype), "cast", f"does not convert to {dtype}", a)
        return self._emit("cast", (a,), dtype, a.shape, self._native.ggml_cast, a.pointer, int(dtype))

    def copy(self, a: Tensor, target: Tensor) -> Tensor:
        """Write `a` into `target`, a tensor of a store or a view of one, of as many elements; converts floats."""
        self._take("copy", a, target)
        self._require(target.storage.home.persistent, "copy", "only the tensors of a store are written to", a, target)
        self._require(_converts(a.dtype, target.dtype), "copy", "does not convert between these types", a, target)
        self._require(a.n_elements == target.n_elements, "copy", "the numbers of elements differ", a, target)
        self._apart("copy", a, target)
        return self._emit(
            "copy", (a, target), target.dtype, target.shape, self._native.ggml_cpy, a.pointer, target.pointer,
            view=(target.storage, target.offset), strides=target.strides, effect=True,
        )  # fmt: skip

    def concat(self, a: Tensor, b: Tensor, axis: int) -> Tensor:
        """`b` after `a` along one dimension; the others are equal."""
        self._movable("concat", a, b)
        self._require(0 <= axis < 4, "concat", f"there is no axis {axis}", a, b)
        shape = [*a.shape]
        shape[axis] = b.shape[axis]
        self._require(tuple(shape) == b.shape, "concat", f"shapes differ beside axis {axis}", a, b)
        self._require(a.dtype is b.dtype, "concat", "types differ", a, b)
        shape[axis] += a.shape[axis]
        return self._emit(
            "concat", (a, b), a.dtype, four(tuple(shape)), self._native.ggml_concat, a.pointer, b.pointer, axis
        )

    def repeat(self, a: Tensor, *shape: int) -> Tensor:
        """`a` tiled to `shape`, f32 or f16."""
        self._take("repeat", a)
        full = four(shape)
        plain = a.dtype in (DType.F32, DType.F16) and a.has_contiguous_rows
        self._require(plain, "repeat", "takes f32 or f16 with contiguous rows", a)
        self._require(repeats(a.shape, full), "repeat", f"does not fit into {list(full)} a whole number of times", a)
        return self._emit("repeat", (a,), a.dtype, full, self._native.ggml_repeat_4d, a.pointer, *full)

    def pad(self, a: Tensor, left: tuple[int, ...] = (), right: tuple[int, ...] = ()) -> Tensor:
        """Zeros around f32: `left[i]` before and `right[i]` after dimension i."""
        self._dense("pad", a)
        good = len(left) <= 4 and len(right) <= 4 and min((*left, *right), default=0) >= 0
        self._require(good, "pad", f"cannot be padded by {list(left)} and {list(right)}", a)
        before, after = (*left, 0, 0, 0, 0)[:4], (*right, 0, 0, 0, 0)[:4]
        shape = four(tuple(first + n + last for first, n, last in zip(before, a.shape, after, strict=True)))
        widths = [width for pair in zip(before, after, strict=True) for width in pair]
        return self._emit("pad", (a,), a.dtype, shape, self._native.ggml_pad_ext, a.pointer, *widths)

    def roll(self, a: Tensor, *shifts: int) -> Tensor:
        """f32 rotated by `shifts[i]` along dimension i, as `numpy.roll` does."""
        self._dense("roll", a)
        full = (*shifts, 0, 0, 0, 0)[:4]
        good = len(shifts) <= 4 and all(abs(shift) < n for shift, n in zip(full, a.shape, strict=True))
        self._require(good, "roll", f"cannot be rolled by {list(shifts)}", a)
        return self._emit("roll", (a,), a.dtype, a.shape, self._native.ggml_roll, a.pointer, *full)

    def get_rows(self, table: Tensor, index: Tensor) -> Tensor:
        """Rows of `table` [n, rows, b, c] by `index` i32 [m, b, c] -> f32 [n, m, b, c]; an i32 table stays i32.

        Every index must be a row of the table. What an input holds is checked at every run; what a store's tensor or
        an earlier operation holds is the caller's word, and a wrong one ends the process.
        """
        self._take("get_rows", table, index)
        plain = table.dtype.is_quantised or table.dtype in _MOVABLE
        plain = plain and table.has_contiguous_rows
        self._require(plain, "get_rows", "takes a table with contiguous rows", table, index)
        good = index.dtype is DType.I32 and index.has_contiguous_rows and index.shape[3] == 1
        self._require(good, "get_rows", "takes an i32 index of up to three dimensions", table, index)
        self._require(table.shape[2:] == index.shape[1:3], "get_rows", "outer dimensions differ", table, index)
        self._limit_rows(index.storage, table.shape[1])
        dtype = DType.I32 if table.dtype is DType.I32 else DType.F32
        shape = (table.shape[0], *index.shape[:3])
        return self._emit(
            "get_rows", (table, index), dtype, shape, self._native.ggml_get_rows, table.pointer, index.pointer
        )

    def set_rows(self, target: Tensor, rows: Tensor, index: Tensor) -> Tensor:
        """Write f32 `rows` [n, m, b, c] over those rows of `target` [n, r, b, c] that `index` [m, b, c] names.

        `target` is a tensor of a store, or a view of one, in f32, f16, bf16 or q8_0; `index` is i64 (the form that
        CUDA fuses) or i32, and repeats over b and c. Of indices the same holds as in `get_rows`.
        """
        self._take("set_rows", target, rows, index)
        every = (target, rows, index)
        self._require(target.storage.home.persistent, "set_rows", "only the tensors of a store are written to", *every)
        good = target.dtype.is_float or target.dtype is DType.Q8_0
        good = good and target.has_contiguous_rows
        self._require(good, "set_rows", "writes f32, f16, bf16 or q8_0 with contiguous rows", *every)
        good = rows.dtype is DType.F32 and rows.has_contiguous_rows
        self._require(good, "set_rows", "takes f32 with contiguous rows", *every)
        good = index.dtype in (DType.I64, DType.I32) and index.is_contiguous and index.shape[3] == 1
        self._require(good, "set_rows", "takes a contiguous i64 or i32 index of up to three dimensions", *every)
        same = target.shape[0] == rows.shape[0] and target.shape[2:] == rows.shape[2:]
        same = same and rows.shape[1] == index.shape[0]
        same = same and not (rows.shape[2] % index.shape[1] or rows.shape[3] % index.shape[2])
        self._require(same, "set_rows", "shapes do not belong together", *every)
        self._apart("set_rows", rows, target)
        self._limit_rows(index.storage, target.shape[1])
        return self._emit(
            "set_rows", every, target.dtype, target.shape, self._native.ggml_set_rows,
            target.pointer, rows.pointer, index.pointer,
            view=(target.storage, target.offset), strides=target.strides, effect=True,
        )  # fmt: skip

    def _movable(self, operation: str, *tensors: Tensor) -> None:
        self._take(operation, *tensors)
        self._require(all(t.dtype in _MOVABLE for t in tensors), operation, "moves f32, f16, bf16 and i32", *tensors)

    def _apart(self, operation: str, source: Tensor, target: Tensor) -> None:
        """Threads write while others read, so a target must not share memory with its source."""
        if source.storage is target.storage:
            apart = source.offset + source.n_bytes <= target.offset or target.offset + target.n_bytes <= source.offset
            self._require(apart, operation, "source and target overlap in memory", source, target)

    def _limit_rows(self, index: Storage, n_rows: int) -> None:
        self._row_limits[index] = min(n_rows, self._row_limits.get(index, n_rows))


def _converts(a: DType, b: DType) -> bool:
    return (a.is_float and b.is_float) or (a in _EXACT and b in _EXACT)


_EXACT = (DType.F32, DType.I32)


def _four(values: list[int]) -> Shape:
    return values[0], values[1], values[2], values[3]


def _complete(shape: Shape, packed: Shape, strides: tuple[int, ...]) -> Shape:
    """The given strides of dimensions 1.., and each one above as the end of the dimension below.

    A dimension of 1 needs no stride; it gets the one that kernels assert of a contiguous tensor.
    """
    full = [packed[0], packed[1] if shape[1] == 1 or not strides else strides[0]]
    for axis in (2, 3):
        given = shape[axis] > 1 and len(strides) >= axis
        full.append(strides[axis - 1] if given else full[-1] * shape[axis - 1])
    return _four(full)


def _overlaps(dtype: DType, shape: Shape, strides: Shape) -> bool:
    """Whether two elements may share memory: sorted by stride, each dimension must step over those below."""
    span = dtype.row_bytes(shape[0])
    for stride, n in sorted(zip(strides[1:], shape[1:], strict=True)):
        if n > 1:
            if stride < span:
                return True
            span += stride * (n - 1)
    return False
