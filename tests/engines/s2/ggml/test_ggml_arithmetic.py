"""Element by element, along rows, and sorting: against numpy in float64."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fishs2_daemon.engines.s2.ggml import DType, ShapeError

quick = settings(max_examples=15, deadline=None)
shapes = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)
seeds = st.integers(0, 2**32 - 1)


def normal(seed, *shape, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def close(got, want, tolerance=1e-5):
    want = np.asarray(want, np.float64)
    np.testing.assert_allclose(got.reshape(want.shape), want, rtol=tolerance, atol=tolerance)


UNARY = {
    "sqr": np.square,
    "sqrt": lambda x: np.sqrt(np.abs(x)),
    "sin": np.sin,
    "cos": np.cos,
    "exp": np.exp,
    "log": lambda x: np.log(np.abs(x)),
    "neg": np.negative,
    "step": lambda x: (x > 0) * 1.0,
    "tanh": np.tanh,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu_erf": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
    "cumsum": lambda x: np.cumsum(x, -1),
    "sum_rows": lambda x: x.sum(-1, keepdims=True),
    "mean": lambda x: x.mean(-1, keepdims=True),
}


@pytest.mark.parametrize("name", UNARY)
@quick
@given(shape=shapes, seed=seeds)
def test_unary(kit, name, shape, seed):
    x = normal(seed, *shape, scale=2)
    x = np.abs(x) + np.float32(0.1) if name in ("sqrt", "log") else x
    # silu reads a table of exp(x) on some processors.
    tolerance = 2e-3 if name in ("silu", "gelu_erf") else 1e-5
    close(kit.compute(lambda g, a: getattr(g, name)(a), x), UNARY[name](x.astype(np.float64)), tolerance)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div"])
@quick
@given(shape=shapes, times=st.lists(st.integers(1, 3), min_size=4, max_size=4), seed=seeds)
def test_binary_repeats_the_second(kit, name, shape, times, seed):
    b = normal(seed, *shape)
    b = b + np.sign(b)
    a = normal(seed + 1, *(n * t for n, t in zip(shape, times, strict=False)))
    tiled = np.tile(b, times[: len(shape)]).astype(np.float64)
    function = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[name]
    close(kit.compute(lambda g, x, y: getattr(g, name)(x, y), a, b), function(a.astype(np.float64), tiled))


@quick
@given(shape=shapes, seed=seeds, factor=st.floats(-3, 3), bias=st.floats(-3, 3))
def test_scale_and_clamp(kit, shape, seed, factor, bias):
    x = normal(seed, *shape)
    close(kit.compute(lambda g, a: g.scale(a, factor, bias), x), x * float(factor) + bias)
    close(kit.compute(lambda g, a: g.clamp(a, -0.5, 0.7), x), x.clip(-0.5, 0.7))


def test_clamp_leaves_its_argument_alone(kit):
    x = np.array([-2, 0.5, 2], np.float32)

    def build(g, a):
        doubled = g.scale(a, 2.0)
        return g.add(g.clamp(doubled, -1, 1), doubled)

    close(kit.compute(build, x), x.astype(np.float64).clip(-0.5, 0.5) * 2 + 2 * x)


@quick
@given(shape=shapes, seed=seeds)
def test_norms(kit, shape, seed):
    x = normal(seed, *shape)
    exact = x.astype(np.float64)
    rms = exact / np.sqrt(np.mean(exact**2, -1, keepdims=True) + 1e-6)
    close(kit.compute(lambda g, a: g.rms_norm(a, 1e-6), x), rms)
    layer = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-3)
    close(kit.compute(lambda g, a: g.norm(a, 1e-3), x), layer, 1e-4)


@quick
@given(rows=st.integers(1, 5), half=st.integers(1, 40), seed=seeds)
def test_swiglu_in_both_forms(kit, rows, half, seed):
    x = normal(seed, rows, 2 * half)
    exact = x.astype(np.float64)
    gate, up = exact[:, :half], exact[:, half:]
    want = gate / (1 + np.exp(-gate)) * up
    close(kit.compute(lambda g, a: g.swiglu(a), x), want, 2e-3)

    def split(g, a):
        return g.swiglu(g.narrow(a, 0, 0, half), g.narrow(a, 0, half, half))

    close(kit.compute(split, x), want, 2e-3)


@quick
@given(rows=st.integers(1, 6), n=st.integers(1, 300), seed=seeds, data=st.data())
def test_sorting(kit, rows, n, seed, data):
    x = np.random.default_rng(seed).permuted(np.arange(rows * n, dtype=np.float32).reshape(rows, n), axis=1)
    k = data.draw(st.integers(1, n))
    found = kit.compute(lambda g, a: g.cont(g.top_k(a, k)), x)
    wanted = np.argsort(-x, axis=1)[:, :k]
    assert (found.reshape(rows, k) == wanted).all()
    found = kit.compute(lambda g, a: g.largest(a, k), x)
    assert (np.sort(found.reshape(rows, k)) == np.sort(wanted)).all()
    assert (kit.compute(lambda g, a: g.argmax(a), x).ravel() == x.argmax(1)).all()


def test_rows_of_a_wider_matrix_are_normalised_in_place(kit):
    x = normal(0, 7, 12)
    exact = x[:, 4:8].astype(np.float64)
    got = kit.compute(lambda g, a: g.rms_norm(g.narrow(a, 0, 4, 4), 0.0), x)
    close(got, exact / np.sqrt(np.mean(exact**2, -1, keepdims=True)))


WRONG = {
    "add": lambda g, f: g.add(f(4, 3), f(4, 2)),
    "mul of f16": lambda g, f: g.mul(f(4, 3), g.input("h", DType.F16, 4, 3)),
    "sub transposed": lambda g, f: g.sub(g.transpose(f(4, 3)), f(3, 4)),
    "silu of a strided view": lambda g, f: g.silu(g.narrow(f(4, 3), 0, 0, 2)),
    "sin of integers": lambda g, f: g.sin(g.input("i", DType.I32, 4)),
    "scale of a permuted tensor": lambda g, f: g.scale(g.permute(f(4, 3, 2), 0, 2, 1, 3), 2.0),
    "clamp upside down": lambda g, f: g.clamp(f(4), 1.0, 0.0),
    "rms_norm transposed": lambda g, f: g.rms_norm(g.transpose(f(4, 3)), 0.0),
    "norm with a negative eps": lambda g, f: g.norm(f(4), -1.0),
    "swiglu of odd rows": lambda g, f: g.swiglu(f(5, 2)),
    "swiglu of two shapes": lambda g, f: g.swiglu(f(4, 2), f(4, 3)),
    "argmax in three dimensions": lambda g, f: g.argmax(f(4, 3, 2)),
    "top_k of too few": lambda g, f: g.top_k(f(4), 5),
    "top_k of none": lambda g, f: g.top_k(f(4), 0),
    "largest of too few": lambda g, f: g.largest(f(4), 5),
    "largest of none": lambda g, f: g.largest(f(4), 0),
    "largest of columns": lambda g, f: g.largest(g.transpose(f(4, 3)), 2),
    "sum_rows of columns": lambda g, f: g.sum_rows(g.transpose(f(4, 3))),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_refuses(builder, wrong):
    numbers = iter(range(9))
    with pytest.raises(ShapeError, match=r"wrong: \w+\("):
        WRONG[wrong](builder, lambda *shape: builder.input(str(next(numbers)), DType.F32, *shape))
