"""Views, copies and rows: against numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fishs2_daemon.engines.s2.ggml import DType, GraphBuilder, ShapeError

quick = settings(max_examples=15, deadline=None)
shapes4 = st.lists(st.integers(1, 6), min_size=4, max_size=4).map(tuple)
seeds = st.integers(0, 2**32 - 1)
QUANTISED = [dtype for dtype in DType if dtype.is_quantised]
DTYPES = {np.int64: DType.I64, np.int32: DType.I32}
FLOATS = [DType.F32, DType.F16, DType.BF16]


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@quick
@given(shape=shapes4, seed=seeds, order=st.permutations(range(4)))
def test_permute_and_cont(kit, shape, seed, order):
    x = normal(seed, *shape)
    got = kit.compute(lambda g, a: g.cont(g.permute(a, *order)), x)
    # ggml dimension i goes to order[i]; numpy's axes count from the other end.
    where = np.argsort(order)
    want = x.transpose([3 - where[3 - axis] for axis in range(4)])
    assert (got == want).all()
    assert (kit.compute(lambda g, a: g.cont(g.transpose(a)), x) == x.swapaxes(2, 3)).all()


def test_ones_that_move_leave_a_contiguous_tensor(kit):
    """ggml would keep the old stride of the one, and kernels that step from row to row would leave the memory."""
    x = normal(5, 6, 4, 32)  # f32 [32, 4, 6]

    def build(g, a):
        turned = g.permute(a, 0, 2, 3, 1)  # f32 [32, 1, 4, 6]
        assert turned.is_contiguous
        assert not g.permute(a, 0, 2, 1, 3).is_contiguous
        return g.top_k(turned, 3)

    got = kit.compute(build, x)
    assert (got == np.argsort(-x, axis=-1)[:, :, None, :3]).all()


@quick
@given(shape=shapes4, seed=seeds, axis=st.integers(0, 3), data=st.data())
def test_narrow_concat_pad_roll(kit, shape, seed, axis, data):
    x = normal(seed, *shape)
    n = shape[3 - axis]
    start = data.draw(st.integers(0, n - 1))
    length = data.draw(st.integers(1, n - start))
    want = np.take(x, range(start, start + length), 3 - axis)
    assert (kit.compute(lambda g, a: g.narrow(a, axis, start, length), x) == want).all()
    assert (kit.compute(lambda g, a: g.concat(a, g.narrow(a, axis, start, length), axis), x)
            == np.concatenate([x, want], 3 - axis)).all()  # fmt: skip
    left, right = [data.draw(st.lists(st.integers(0, 3), max_size=4)) for _ in "lr"]
    widths = list(zip([*left, 0, 0, 0, 0][:4], [*right, 0, 0, 0, 0][:4], strict=True))[::-1]
    assert (kit.compute(lambda g, a: g.pad(a, tuple(left), tuple(right)), x) == np.pad(x, widths)).all()
    shifts = [data.draw(st.integers(1 - n, n - 1)) for n in shape[::-1]]
    rolled = np.roll(x, shifts[::-1], (0, 1, 2, 3))
    assert (kit.compute(lambda g, a: g.roll(a, *shifts), x) == rolled).all()


@quick
@given(shape=shapes4, times=shapes4, seed=seeds)
def test_repeat_and_reshape(kit, shape, times, seed):
    x = normal(seed, *shape)
    full = tuple(n * t for n, t in zip(shape, times, strict=True))
    assert (kit.compute(lambda g, a: g.repeat(a, *full[::-1]), x) == np.tile(x, times)).all()
    flat = kit.compute(lambda g, a: g.reshape(a, a.n_elements), x)
    assert (flat.ravel() == x.ravel()).all()


def test_view_with_strides_of_its_own(kit):
    x = normal(1, 3, 20)  # f32 [20, 3]
    got = kit.compute(lambda g, a: g.view(a, (4, 2, 3), (8 * 4, 20 * 4), 2 * 4), x)
    assert (got[0] == np.stack([x[:, 2:6], x[:, 10:14]], 1)).all()


@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("source", FLOATS)
def test_cast_and_copy_convert_floats(kit, source, target):
    from_store, from_tensor, held = kit.stored(normal(2, 3, 8), source)
    into_store, into, _ = kit.stored(np.zeros((3, 8), np.float32), target)
    g = GraphBuilder(kit.backend, "cast")
    g.copy(from_tensor, into)
    g.output("out", g.cast(g.cast(from_tensor, target), DType.F32))
    kit.check_headers(g)
    with from_store, into_store, g.build() as graph:
        got = graph.run()["out"][0, 0]
        _, _, want = kit.stored(held, target)
        assert (got == want).all()
        raw = into_store.read(into)[0, 0]
        if target is DType.BF16:
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        assert (raw.astype(np.float32) == want).all()


def test_cast_between_f32_and_i32(kit):
    x = np.array([-3.7, 0.2, 5.9], np.float32)
    assert kit.compute(lambda g, a: g.cast(a, DType.I32), x).ravel().tolist() == [-3, 0, 5]
    y = np.array([-3, 7], np.int32)
    assert kit.compute(lambda g, a: g.cast(a, DType.F32), y).ravel().tolist() == [-3.0, 7.0]


@pytest.mark.parametrize("dtype", [*FLOATS, DType.I32, *QUANTISED])
def test_get_rows(kit, dtype):
    store, table, held = kit.stored(normal(3, 2, 11, 256) * 9, dtype)
    index = np.random.default_rng(3).integers(0, 11, (2, 5), dtype=np.int32)
    with store:
        got = kit.compute(lambda g, i: g.get_rows(table, i), index)[0]
    want = np.stack([held[b][index[b]] for b in range(2)])
    assert got.dtype == (np.int32 if dtype is DType.I32 else np.float32)
    assert (got == want.astype(got.dtype)).all()


@pytest.mark.parametrize("dtype", [*FLOATS, DType.Q8_0])
@pytest.mark.parametrize("index_type", [np.int64, np.int32])
def test_set_rows(kit, dtype, index_type):
    store, table, held = kit.stored(np.zeros((6, 64), np.float32), dtype)
    rows, index = normal(4, 3, 64), np.array([5, 0, 2], index_type)
    g = GraphBuilder(kit.backend, "write, then read")
    g.set_rows(table, g.input("rows", DType.F32, 64, 3), g.input("index", DTYPES[index_type], 3))
    g.output("out", g.get_rows(table, g.input("all", DType.I32, 6)))
    kit.check_headers(g)
    with store, g.build() as graph:
        got = graph.run(rows=rows, index=index, all=np.arange(6, dtype=np.int32))["out"][0, 0]
    _, _, rounded = kit.stored(rows, dtype)
    np.testing.assert_allclose(got[index], rounded, atol=1e-2 if dtype is DType.Q8_0 else 0)
    assert (got[[1, 3, 4]] == held[[1, 3, 4]]).all()


def _overlapping_copy(g, f, s):
    g.copy(g.narrow(s, 1, 0, 3), g.narrow(s, 1, 1, 3))


WRONG = {
    "view past the end": lambda g, f, s: g.view(f(4, 3), (4, 3), (16,), 4),
    "view past the end by strides": lambda g, f, s: g.view(f(4, 3), (2, 3), (24,)),
    "view before the start": lambda g, f, s: g.view(f(4, 3), (4,), (), -4),
    "view of overlapping windows": lambda g, f, s: g.view(f(12), (4, 5), (8,)),
    "view that broadcasts": lambda g, f, s: g.view(f(12), (4, 2), (0,)),
    "view between elements": lambda g, f, s: g.view(f(12), (4,), (), 2),
    "view of a transposed tensor": lambda g, f, s: g.view(g.transpose(f(4, 3)), (3,)),
    "view with four strides": lambda g, f, s: g.view(f(4), (4,), (4, 4, 4, 4)),
    "view packed beyond its memory": lambda g, f, s: g.view(f(4, 3), (4, 3), (16,), 16),
    "narrow past the end": lambda g, f, s: g.narrow(f(4, 3), 1, 2, 2),
    "narrow along a fifth axis": lambda g, f, s: g.narrow(f(4, 3), 4, 0, 1),
    "reshape to another size": lambda g, f, s: g.reshape(f(4, 3), 5),
    "reshape of a strided view": lambda g, f, s: g.reshape(g.narrow(f(4, 3), 0, 0, 2), 6),
    "permute twice to one place": lambda g, f, s: g.permute(f(4, 3), 0, 0, 1, 2),
    "cont of i64": lambda g, f, s: g.cont(g.input("i", DType.I64, 4)),
    "cast of i32 to f16": lambda g, f, s: g.cast(g.input("i", DType.I32, 4), DType.F16),
    "cast to a quantised type": lambda g, f, s: g.cast(f(256), DType.Q4_K),
    "copy of another size": lambda g, f, s: g.copy(f(4, 4), s),
    "copy into an input": lambda g, f, s: g.copy(f(4), f(4)),
    "copy onto itself": _overlapping_copy,
    "concat of two widths": lambda g, f, s: g.concat(f(4, 3), f(5, 3), 1),
    "concat of two types": lambda g, f, s: g.concat(f(4), g.input("i", DType.I32, 4), 0),
    "concat along a fifth axis": lambda g, f, s: g.concat(f(4), f(4), 4),
    "repeat to a fraction": lambda g, f, s: g.repeat(f(4), 6),
    "pad by less than nothing": lambda g, f, s: g.pad(f(4), (-1,)),
    "roll all the way": lambda g, f, s: g.roll(f(4), 4),
    "get_rows with i64": lambda g, f, s: g.get_rows(f(4, 3), g.input("i", DType.I64, 2)),
    "get_rows of other outer dimensions": lambda g, f, s: g.get_rows(f(4, 3, 2), g.input("i", DType.I32, 2)),
    "set_rows into an input": lambda g, f, s: g.set_rows(f(4, 5), f(4, 2), g.input("i", DType.I64, 2)),
    "set_rows of another width": lambda g, f, s: g.set_rows(s, f(3, 2), g.input("i", DType.I64, 2)),
    "set_rows of another count": lambda g, f, s: g.set_rows(s, f(4, 3), g.input("i", DType.I64, 2)),
    "set_rows with a float index": lambda g, f, s: g.set_rows(s, f(4, 2), f(2)),
    "set_rows from itself": lambda g, f, s: g.set_rows(s, g.narrow(s, 1, 0, 2), g.input("i", DType.I64, 2)),
    "a shape of five dimensions": lambda g, f, s: f(1, 1, 1, 1, 1),
    "an empty shape": lambda g, f, s: f(),
    "a dimension of nothing": lambda g, f, s: f(4, 0),
    "an impossible size": lambda g, f, s: f(2**31 - 1, 2**31 - 1),
    "an input of bf16": lambda g, f, s: g.input("b", DType.BF16, 4),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_refuses(kit, builder, wrong):
    numbers = iter(range(9))
    store, tensor, _ = kit.stored(np.zeros((5, 4), np.float32))  # f32 [4, 5]
    with store, pytest.raises(ShapeError):
        WRONG[wrong](builder, lambda *shape: builder.input(str(next(numbers)), DType.F32, *shape), tensor)
