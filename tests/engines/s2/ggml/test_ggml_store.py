"""Stores, and ggml's quantiser."""

import mmap
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fishs2_daemon.engines.s2.ggml import DType, ShapeError, Store, dequantize, quantize
from fishs2_daemon.errors import EngineError

WEIGHTS = [dtype for dtype in DType if dtype.is_quantised or dtype.is_float]

#: Largest error over the largest value of a block of normal noise.
WORST = {
    DType.F32: 0, DType.F16: 1e-3, DType.BF16: 8e-3, DType.Q8_0: 0.005, DType.Q6_K: 0.04, DType.Q5_K: 0.05,
    DType.Q5_0: 0.07, DType.Q5_1: 0.07, DType.Q4_K: 0.1, DType.Q4_0: 0.14, DType.Q4_1: 0.14, DType.IQ4_NL: 0.16,
    DType.IQ4_XS: 0.16, DType.Q3_K: 0.25, DType.Q2_K: 0.4,
}  # fmt: skip


@pytest.mark.parametrize("dtype", WEIGHTS)
@settings(max_examples=5, deadline=None)
@given(rows=st.integers(1, 5), blocks=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_quantise_and_back(kit, dtype, rows, blocks, seed):
    values = np.random.default_rng(seed).standard_normal((rows, 256 * blocks)).astype(np.float32)
    packed = quantize(values, dtype)
    assert packed.shape == (rows, dtype.row_bytes(256 * blocks))
    back = dequantize(packed, dtype)
    assert back.shape == values.shape
    assert np.abs(back - values).max() <= WORST[dtype] * np.abs(values).max()
    if dtype in (DType.F32, DType.F16):
        assert (back == values.astype(dtype.numpy)).all()


def test_the_quantiser_refuses(kit):
    with pytest.raises(ShapeError, match="multiple of 256"):
        quantize(np.zeros((2, 100), np.float32), DType.Q4_K)
    with pytest.raises(ShapeError, match="finite"):
        quantize(np.full((1, 32), np.inf, np.float32), DType.Q8_0)
    with pytest.raises(ShapeError, match="i32"):
        quantize(np.zeros((1, 32), np.float32), DType.I32)
    with pytest.raises(ShapeError, match="whole blocks"):
        dequantize(np.zeros(33, np.uint8), DType.Q8_0)


def test_tensors_start_as_zeros_and_keep_what_is_written(kit):
    with Store(kit.backend, weights=True) as store:
        a, b = store.new(DType.F32, 3, 2), store.new(DType.I64, 5)
        store.allocate()
        assert store.n_bytes >= 24 + 40
        assert not store.read(a).any()
        store.write(a, np.arange(6, dtype=np.float32).reshape(2, 3))
        store.write(b, np.arange(5))
        store.write_bytes(a, np.float32([9, 8]).tobytes(), 8)
        assert store.read(a).ravel().tolist() == [0, 1, 9, 8, 4, 5]
        assert store.read(b).ravel().tolist() == [0, 1, 2, 3, 4]
        store.clear()
        assert not store.read(b).any()


def test_some_bytes_are_set_to_zeros_and_no_others(kit):
    with Store(kit.backend) as store:
        tensor = store.new(DType.F32, 3, 4)
        store.allocate()
        store.write(tensor, np.ones((4, 3), np.float32))
        store.zero(tensor, 12, 24)
        assert store.read(tensor)[0, 0, :, 0].tolist() == [1, 0, 0, 1]
        for offset, n_bytes in ((-4, 4), (0, 52), (48, 4), (4, -4)):
            with pytest.raises(ShapeError, match="do not lie in"):
                store.zero(tensor, offset, n_bytes)


def test_weights_are_written_straight_from_a_map(kit):
    values = np.arange(64, dtype=np.float32)
    with tempfile.TemporaryFile() as file:
        file.write(b"header--" + values.tobytes())
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, Store(kit.backend) as store:
            tensor = store.new(DType.F32, 64)
            store.allocate()
            with memoryview(mapped) as whole, whole[8:] as part:
                store.write_bytes(tensor, part)
            assert (store.read(tensor).ravel() == values).all()


def test_writes_are_checked(kit):
    store, tensor, _ = kit.stored(np.zeros((2, 32), np.float32), DType.Q8_0)
    plain, floats, _ = kit.stored(np.zeros((2, 32), np.float32))
    with store, plain:
        assert store.read(tensor).shape == (1, 1, 2, 34)
        with pytest.raises(ShapeError, match="quantised"):
            store.write(tensor, np.zeros((2, 32), np.float32))
        with pytest.raises(ShapeError, match="do not fit"):
            store.write_bytes(tensor, bytes(69))
        with pytest.raises(ShapeError, match="do not fit"):
            store.write_bytes(tensor, bytes(1), -1)
        with pytest.raises(ShapeError, match="float32"):
            plain.write(floats, np.zeros((2, 32)))
        with pytest.raises(ShapeError, match=r"\[1, 1, 2, 32\]"):
            plain.write(floats, np.zeros((32, 2), np.float32))
        with pytest.raises(EngineError, match="not made by this store"):
            plain.read(tensor)


def test_more_memory_than_there_is(kit, caplog):
    with Store(kit.backend) as store:
        # Beyond what 47 bits of address can hold, whatever the machine promises.
        for _ in range(8):
            store.new(DType.F32, 2**20, 2**20, 2**4)
        with pytest.raises(EngineError, match="not enough memory on cpu"):
            store.allocate()
    assert "failed to allocate" in caplog.text  # ggml's own message, routed to logging
