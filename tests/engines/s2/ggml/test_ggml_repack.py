"""Repacked matrices: the same products, and nothing else is done with them."""

from collections.abc import Callable

import numpy as np
import pytest

from fishs2_daemon.engines.s2.ggml import DType, GraphBuilder, ShapeError, Store, Tensor, quantize
from fishs2_daemon.engines.s2.ggml.repack import repacks
from tests.engines.s2.ggml.conftest import Kit

WIDTH, ROWS = 512, 48


def matrix(dtype: DType, rows: int = ROWS) -> np.ndarray:
    return quantize(np.random.default_rng(7).standard_normal((rows, WIDTH), np.float32), dtype)


def stored(kit: Kit, data: np.ndarray, dtype: DType, *, only_multiplied: bool) -> tuple[Store, Tensor]:
    store = Store(kit.backend, weights=True)
    tensor = store.new(dtype, WIDTH, len(data), only_multiplied=only_multiplied)
    store.allocate()
    store.write_bytes(tensor, data)
    return store, tensor


@pytest.fixture
def repacked(kit: Kit):  # type: ignore[no-untyped-def]
    if not repacks(kit.backend, DType.Q4_K, (WIDTH, ROWS, 1, 1)):
        pytest.skip("ggml has no kernels for repacked Q4_K on this processor")
    store, tensor = stored(kit, matrix(DType.Q4_K), DType.Q4_K, only_multiplied=True)
    assert tensor.storage.repacked
    with store:
        yield store, tensor


@pytest.mark.parametrize("dtype", DType)
@pytest.mark.parametrize("rows", [ROWS, ROWS + 2, 40, 24, 8, 1])
def test_products_are_those_of_the_matrix_as_it_was(kit: Kit, dtype: DType, rows: int) -> None:
    if not (dtype.is_quantised or dtype in (DType.F32, DType.F16)):
        return
    data = matrix(dtype, rows)
    plain, a = stored(kit, data, dtype, only_multiplied=False)
    other, b = stored(kit, data, dtype, only_multiplied=True)
    assert not a.storage.repacked
    with plain, other:
        for columns in (1, 2, 3, 4, 5, 8, 31, 64):
            x = np.random.default_rng(columns).standard_normal((columns, WIDTH), np.float32)
            expected = kit.compute(lambda g, x: g.mul_mat(a, x), x)
            found = kit.compute(lambda g, x: g.mul_mat(b, x), x)
            assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max(), (str(dtype), columns)


def test_a_matrix_of_the_store_s_other_tensors_stays_as_it_is(kit: Kit) -> None:
    store = Store(kit.backend)
    plain, product = store.new(DType.Q4_K, WIDTH, ROWS), store.new(DType.Q4_K, WIDTH, ROWS, only_multiplied=True)
    with store:
        store.allocate()
        data = matrix(DType.Q4_K)
        for tensor in (plain, product):
            store.write_bytes(tensor, data)
        assert store.n_bytes >= 2 * data.nbytes
        assert np.array_equal(store.read(plain)[0, 0], data)
        rows = np.arange(3, dtype=np.int32)
        assert kit.compute(lambda g, rows: g.get_rows(plain, rows), rows).shape == (1, 1, 3, WIDTH)


@pytest.mark.parametrize(
    "use",
    [
        lambda g, w, x: g.get_rows(w, g.input("rows", DType.I32, 2)),
        lambda g, w, x: g.mul_mat(g.view(w, (WIDTH, 8), (w.strides[1],)), x),
        lambda g, w, x: g.mul_mat(g.reshape(w, WIDTH, ROWS // 2, 2), x),
        lambda g, w, x: g.mul_mat(w, g.reshape(x, WIDTH, 2, 2)),
        lambda g, w, x: g.mul_mat(w, g.view(x, (WIDTH, 2), (2 * x.strides[1],))),
        lambda g, w, x: g.output("w", w),
    ],
)
def test_everything_but_a_plain_product_is_refused(
    kit: Kit, repacked: tuple[Store, Tensor], use: Callable[..., Tensor]
) -> None:
    g = GraphBuilder(kit.backend, "test")
    x = g.input("x", DType.F32, WIDTH, 4)
    with pytest.raises(ShapeError, match="repacked"):
        use(g, repacked[1], x)


def test_it_is_written_whole_and_not_read(repacked: tuple[Store, Tensor]) -> None:
    store, tensor = repacked
    data = matrix(DType.Q4_K)
    with pytest.raises(ShapeError, match="bytes at once"):
        store.write_bytes(tensor, data[:8])
    with pytest.raises(ShapeError, match="cannot be read"):
        store.read(tensor)
