"""Matrix products, attention and convolutions: against numpy in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fishs2_daemon.engines.s2.ggml import Backend, DType, GraphBuilder, ShapeError, Store

quick = settings(max_examples=12, deadline=None)
seeds = st.integers(0, 2**32 - 1)
WEIGHTS = [dtype for dtype in DType if dtype.is_quantised or dtype.is_float]


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def relative_rms(got, want):
    want = np.asarray(want, np.float64)
    return np.sqrt(np.mean((got.reshape(want.shape) - want) ** 2) / np.mean(want**2))


@pytest.mark.parametrize("dtype", WEIGHTS)
@settings(max_examples=4, deadline=None)
@given(n=st.integers(1, 20), m=st.integers(1, 20), blocks=st.integers(1, 2), seed=seeds)
def test_mul_mat_with_every_type_of_weights(kit, dtype, n, m, blocks, seed):
    store, w, held = kit.stored(normal(seed, n, 256 * blocks), dtype)
    x = normal(seed + 1, m, 256 * blocks)
    with store:
        got = kit.compute(lambda g, a: g.mul_mat(w, a), x)
    # Below f32 ggml rounds the activations as well: to f16, bf16 or 8 bits.
    tolerance = {DType.F32: 1e-5, DType.F16: 2e-3, DType.BF16: 1e-2}.get(dtype, 2e-2)
    size = np.linalg.norm(x.astype(np.float64)) * np.linalg.norm(held.astype(np.float64)) / np.sqrt(n * m)
    assert np.abs(got[0, 0] - x.astype(np.float64) @ held.T.astype(np.float64)).max() < tolerance * size


@quick
@given(k=st.integers(1, 40), n=st.integers(1, 9), m=st.integers(1, 9), outer=st.integers(1, 3), seed=seeds)
def test_mul_mat_repeats_its_weights(kit, k, n, m, outer, seed):
    w, x = normal(seed, outer, 1, n, k), normal(seed + 1, 2 * outer, 3, m, k)
    want = x.astype(np.float64) @ np.repeat(w.astype(np.float64), 2, 0).swapaxes(2, 3)
    got = kit.compute(lambda g, a, b: g.mul_mat(a, b, precise=True), w, x)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_mul_mat_of_two_f16(kit):
    w, x = normal(1, 5, 24).astype(np.float16), normal(2, 7, 24).astype(np.float16)
    got = kit.compute(lambda g, a, b: g.mul_mat(a, b), w, x)[0, 0]
    np.testing.assert_allclose(got, x.astype(np.float64) @ w.T.astype(np.float64), rtol=1e-3, atol=1e-3)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@quick
@given(n=st.integers(1, 40), m=st.integers(1, 5), heads=st.integers(1, 3), b=st.integers(1, 3), seed=seeds,
       half=st.booleans())  # fmt: skip
def test_soft_max_with_a_mask_for_each_sequence(kit, n, m, heads, b, seed, half):
    x = normal(seed, b, heads, m, n)
    mask = np.where(np.random.default_rng(seed).random((b, 1, m, n)) < 0.3, -np.inf, 0)
    mask[..., 0] = 0
    mask = mask.astype(np.float16 if half else np.float32)
    got = kit.compute(lambda g, a, k: g.soft_max(a, k, 0.5), x, mask)
    np.testing.assert_allclose(got, softmax(x.astype(np.float64) * 0.5 + mask), atol=1e-5)
    np.testing.assert_allclose(kit.compute(lambda g, a: g.soft_max(a), x), softmax(x.astype(np.float64)), atol=1e-5)


@quick
@given(pairs=st.integers(1, 16), heads=st.integers(1, 3), tokens=st.integers(1, 9), seed=seeds)
def test_rope_turns_interleaved_pairs(kit, pairs, heads, tokens, seed):
    x = normal(seed, tokens, heads, 2 * pairs)
    positions = np.random.default_rng(seed).integers(0, 2000, tokens, dtype=np.int32)
    angle = positions[:, None] * 1e6 ** (-np.arange(pairs) / pairs)
    z = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)[:, None]
    want = np.stack([z.real, z.imag], -1).reshape(x.shape)
    got = kit.compute(lambda g, a, p: g.rope(a, p, 1e6), x, positions)
    np.testing.assert_allclose(got[0], want, atol=1e-3)


@pytest.mark.parametrize("half", [True, False])
@quick
@given(width=st.sampled_from([8, 16, 32, 64, 128]), tokens=st.integers(1, 20), cells=st.sampled_from([1, 3, 32, 600]),
       kv=st.integers(1, 2), group=st.integers(1, 4), b=st.integers(1, 3), seed=seeds)  # fmt: skip
def test_flash_attn_over_ragged_sequences(kit, half, width, tokens, cells, kv, group, b, seed):
    dtype = np.float16 if half else np.float32
    q = normal(seed, b, kv * group, tokens, width)
    k, v = (normal(seed + i, b, kv, cells, width).astype(dtype) for i in (1, 2))
    lengths = np.random.default_rng(seed).integers(1, cells + 1, (b, 1, tokens, 1))
    mask = np.where(np.arange(cells) < lengths, 0, -np.inf).astype(np.float16)
    scale = width**-0.5
    kk, vv = (np.repeat(t.astype(np.float64), group, 1) for t in (k, v))
    want = softmax(q.astype(np.float64) @ kk.swapaxes(2, 3) * scale + mask) @ vv
    got = kit.compute(lambda g, *t: g.flash_attn(*t, scale, precise=True), q, k, v, mask)
    assert got.shape == (b, tokens, kv * group, width)
    assert relative_rms(got.swapaxes(1, 2), want) < (5e-3 if half else 1e-3)


@quick
@given(taps=st.integers(1, 5), channels=st.integers(1, 6), out=st.integers(1, 5), time=st.integers(12, 30),
       stride=st.integers(1, 3), dilation=st.integers(1, 2), padding=st.integers(0, 2), seed=seeds)  # fmt: skip
def test_im2col_makes_a_convolution(kit, taps, channels, out, time, stride, dilation, padding, seed):
    kernel, x = normal(seed, out, channels, taps), normal(seed + 1, channels, time)
    padded = np.pad(x, ((0, 0), (padding, padding))).astype(np.float64)
    steps = (padded.shape[1] - dilation * (taps - 1) - 1) // stride + 1
    want = np.zeros((out, steps))
    for t in range(steps):
        window = padded[:, t * stride : t * stride + dilation * (taps - 1) + 1 : dilation]
        want[:, t] = np.tensordot(kernel.astype(np.float64), window, 2)

    def build(g, w, a):
        columns = g.im2col(w, a, stride=stride, padding=padding, dilation=dilation, dtype=DType.F32)
        return g.mul_mat(columns, g.reshape(w, channels * taps, out))

    np.testing.assert_allclose(kit.compute(build, kernel, x)[0, 0], want, atol=1e-4)


def test_im2col_in_f16(kit):
    kernel, x = normal(0, 4, 3, 5).astype(np.float16), normal(1, 3, 20)
    got = kit.compute(lambda g, w, a: g.im2col(w, a, dtype=DType.F16), kernel, x)[0, 0]
    want = np.lib.stride_tricks.sliding_window_view(x, 5, 1).swapaxes(0, 1).reshape(16, 15)
    assert (got == want.astype(np.float16)).all()


@quick
@given(taps=st.integers(1, 6), channels=st.integers(1, 5), time=st.integers(2, 9), stride=st.integers(1, 4), seed=seeds)
def test_col2im_adds_up_a_transposed_convolution(kit, taps, channels, time, stride, seed):
    columns = normal(seed, time, channels * taps)
    want = np.zeros((channels, (time - 1) * stride + taps))
    for t in range(time):
        want[:, t * stride : t * stride + taps] += columns[t].reshape(channels, taps)
    got = kit.compute(lambda g, a: g.col2im_1d(a, stride=stride, channels=channels), columns)
    np.testing.assert_allclose(got[0, 0], want, atol=1e-5)


@quick
@given(taps=st.sampled_from([3, 4, 5, 9, 15]), channels=st.integers(1, 9), time=st.integers(1, 20), b=st.integers(1, 2),
       seed=seeds)  # fmt: skip
def test_depthwise_convolutions_agree(kit, taps, channels, time, b, seed):
    kernel, x = normal(seed, channels, taps), normal(seed + 1, b, channels, time + taps - 1)
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), taps, 2)
    want = np.einsum("bctk,ck->bct", windows, kernel.astype(np.float64))
    got = kit.compute(lambda g, a, w: g.ssm_conv(a, w), x, kernel)[0]
    np.testing.assert_allclose(got.swapaxes(1, 2), want, atol=1e-4)

    def direct(g, a, w):
        shaped = g.reshape(a, time + taps - 1, 1, channels, b)
        return g.depthwise_conv(g.reshape(w, taps, 1, 1, channels), shaped)

    np.testing.assert_allclose(kit.compute(direct, x, kernel)[:, :, 0], want, atol=1e-4)


def _f16(g, *shape):
    return g.input("half", DType.F16, *shape)


def _positions(g, n):
    return g.input("positions", DType.I32, n)


WRONG = {
    "mul_mat of two widths": lambda g, f: g.mul_mat(f(4, 3), f(5, 3)),
    "mul_mat with transposed weights": lambda g, f: g.mul_mat(g.transpose(f(3, 4)), f(4, 2)),
    "mul_mat with transposed activations": lambda g, f: g.mul_mat(f(4, 2), g.transpose(f(3, 4))),
    "mul_mat with f16 activations": lambda g, f: g.mul_mat(f(4, 3), _f16(g, 4, 2)),
    "mul_mat of integers": lambda g, f: g.mul_mat(_positions(g, 4), f(4)),
    "mul_mat of more weights than activations": lambda g, f: g.mul_mat(f(4, 3, 2), f(4, 3, 3)),
    "soft_max with a narrow mask": lambda g, f: g.soft_max(f(4, 3), f(3, 3)),
    "soft_max with a short mask": lambda g, f: g.soft_max(f(4, 3), f(4, 2)),
    "soft_max with an integer mask": lambda g, f: g.soft_max(f(4), _positions(g, 4)),
    "rope with other positions": lambda g, f: g.rope(f(4, 2, 3), _positions(g, 2), 1e4),
    "rope with float positions": lambda g, f: g.rope(f(4, 2, 3), f(3), 1e4),
    "rope of odd rows": lambda g, f: g.rope(f(5, 2, 3), _positions(g, 3), 1e4),
    "rope with base 0": lambda g, f: g.rope(f(4, 2, 3), _positions(g, 3), 0.0),
    "flash_attn of two widths": lambda g, f: g.flash_attn(f(8, 1, 2), f(4, 5, 2), f(4, 5, 2), None, 1.0),
    "flash_attn of fewer values": lambda g, f: g.flash_attn(f(4, 1, 2), f(4, 5, 2), f(4, 4, 2), None, 1.0),
    "flash_attn of a part of a group": lambda g, f: g.flash_attn(f(4, 1, 3), f(4, 5, 2), f(4, 5, 2), None, 1.0),
    "flash_attn of other sequences": lambda g, f: g.flash_attn(f(4, 1, 2, 2), f(4, 5, 2), f(4, 5, 2), None, 1.0),
    "flash_attn of two types": lambda g, f: g.flash_attn(f(4, 1, 2), f(4, 5, 2), _f16(g, 4, 5, 2), None, 1.0),
    "flash_attn with an f32 mask": lambda g, f: g.flash_attn(f(4, 1, 2), f(4, 5, 2), f(4, 5, 2), f(5, 1), 1.0),
    "flash_attn with a short mask": lambda g, f: g.flash_attn(f(4, 2), f(4, 5), f(4, 5), _f16(g, 5, 1), 1.0),
    "flash_attn with a narrow mask": lambda g, f: g.flash_attn(f(4, 2), f(4, 5), f(4, 5), _f16(g, 4, 2), 1.0),
    "im2col of other channels": lambda g, f: g.im2col(f(3, 4), f(9, 5), dtype=DType.F32),
    "im2col of a short sound": lambda g, f: g.im2col(f(3, 4), f(2, 4), dtype=DType.F32),
    "im2col in f16 of an f32 kernel": lambda g, f: g.im2col(f(3, 4), f(9, 4), dtype=DType.F16),
    "im2col without a stride": lambda g, f: g.im2col(f(3, 4), f(9, 4), stride=0, dtype=DType.F32),
    "col2im of a part of a channel": lambda g, f: g.col2im_1d(f(7, 4), stride=1, channels=2),
    "col2im of nothing": lambda g, f: g.col2im_1d(f(4, 1), stride=1, channels=2, crop=1),
    "depthwise of other channels": lambda g, f: g.depthwise_conv(f(3, 1, 1, 4), f(9, 1, 5)),
    "depthwise of a short sound": lambda g, f: g.depthwise_conv(f(3, 1, 1, 4), f(2, 1, 4)),
    "ssm_conv of seven taps": lambda g, f: g.ssm_conv(f(20, 4), f(7, 4)),
    "ssm_conv of a short sound": lambda g, f: g.ssm_conv(f(3, 4), f(4, 4)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_refuses(builder, wrong):
    numbers = iter(range(9))
    with pytest.raises(ShapeError):
        WRONG[wrong](builder, lambda *shape: builder.input(str(next(numbers)), DType.F32, *shape))


@pytest.mark.parametrize(
    ("device", "dtype", "columns", "is_asked"),
    [
        ("cpu", DType.F16, 17, True),
        ("cuda:0", DType.F16, 16, True),
        ("cuda:0", DType.F16, 17, False),
        ("cuda:0", DType.Q8_0, 17, True),
    ],
)
def test_precision_never_costs_a_copy_of_all_weights(kit, monkeypatch, device, dtype, columns, is_asked):
    """CUDA would make f32 of f16 weights for more columns than its own kernels take."""
    asked = []
    with Backend.open("cpu", threads=1) as backend:
        backend.device = device
        monkeypatch.setattr(backend.native, "ggml_mul_mat_set_prec", lambda tensor, kind: asked.append(kind))
        with Store(backend) as store:
            weights = store.new(dtype, 32, 8)
            store.allocate()
            g = GraphBuilder(backend, "test")
            g.mul_mat(weights, g.input("x", DType.F32, 32, columns), precise=True)
    assert bool(asked) == is_asked
