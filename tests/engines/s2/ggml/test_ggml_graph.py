"""Graphs over many runs: inputs, the order of writes, outputs, what is refused, and what is given back."""

import numpy as np
import psutil
import pytest

from fishs2_daemon.engines.s2.ggml import Backend, DType, GraphBuilder, ShapeError, Store, UnsupportedOperation
from fishs2_daemon.errors import EngineError


def ramp(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_runs_stay_right_when_inputs_change(kit):
    """In the allocator's own buffer an input is overwritten after its last use: only the first run is right."""
    g = GraphBuilder(kit.backend, "chain")
    x, y = g.input("x", DType.F32, 64, 8), g.input("y", DType.F32, 64, 8)
    total = g.add(x, y)
    for _ in range(20):
        total = g.scale(total, 1.5)
        total = g.scale(total, 1 / 1.5)
    g.output("out", total)
    rng = np.random.default_rng(0)
    with g.build() as graph:
        for _ in range(50):
            a, b = rng.standard_normal((2, 8, 64)).astype(np.float32)
            np.testing.assert_allclose(graph.run(x=a, y=b)["out"][0, 0], a + b, atol=1e-4)
        # What is not set again keeps its value.
        np.testing.assert_allclose(graph.run(x=a * 2)["out"][0, 0], a * 2 + b, atol=1e-4)


def test_operations_run_in_the_order_of_their_calls(kit):
    """ggml knows no edge between a write to a store and the reads around it."""
    with Store(kit.backend) as store:
        state = store.new(DType.F32, 4)
        store.allocate()
        g = GraphBuilder(kit.backend, "order")
        x = g.input("x", DType.F32, 4)
        before = g.scale(state, 1.0)
        g.copy(x, state)
        between = g.scale(state, 10.0)
        g.copy(g.scale(x, 2.0), state)
        g.output("after", g.scale(state, 1.0))
        g.output("between", between)
        g.output("before", before)
        with g.build() as graph:
            last = np.zeros(4, np.float32)
            for i in range(5):
                value = ramp(4) + i
                got = {name: out.ravel().tolist() for name, out in graph.run(x=value).items()}
                assert got == {
                    "before": last.tolist(),
                    "between": (value * 10).tolist(),
                    "after": (value * 2).tolist(),
                }
                last = value * 2
            assert store.read(state).ravel().tolist() == last.tolist()


def test_keys_and_values_are_read_after_they_are_written(kit):
    """Four slots of different lengths in one graph: a step writes its cell, then attends to all cells so far."""
    slots, cells, width, heads = 4, 32, 16, 2
    rng = np.random.default_rng(1)
    with Store(kit.backend) as store:
        keys, values = store.new(DType.F16, width, cells * slots), store.new(DType.F16, width, cells * slots)
        store.allocate()
        g = GraphBuilder(kit.backend, "attention")
        k, v = g.input("k", DType.F32, width, slots), g.input("v", DType.F32, width, slots)
        cell, mask = g.input("cell", DType.I64, slots), g.input("mask", DType.F16, cells, 1, 1, slots)
        q = g.input("q", DType.F32, width, 1, heads, slots)
        g.set_rows(keys, k, cell)
        g.set_rows(values, v, cell)
        kk, vv = (g.reshape(t, width, cells, 1, slots) for t in (keys, values))
        g.output("out", g.flash_attn(q, kk, vv, mask, 0.25))
        lengths = np.array([0, 3, 7, 12])
        past = np.zeros((2, slots, cells, width))
        with g.build() as graph:
            for _ in range(10):
                new = rng.standard_normal((2, slots, width)).astype(np.float32)
                query = rng.standard_normal((slots, heads, 1, width)).astype(np.float32)
                past[:, range(slots), lengths] = new.astype(np.float16)
                seen = np.arange(cells) <= lengths[:, None]
                got = graph.run(
                    k=new[0], v=new[1], q=query, cell=np.arange(slots) * cells + lengths,
                    mask=np.where(seen, 0, -np.inf).astype(np.float16)[:, None, None],
                )["out"]  # fmt: skip
                scores = np.einsum("bhw,bcw->bhc", query[:, :, 0], past[0]) * 0.25
                scores = np.where(seen[:, None], scores, -np.inf)
                weights = np.exp(scores - scores.max(-1, keepdims=True))
                weights /= weights.sum(-1, keepdims=True)
                want = np.einsum("bhc,bcw->bhw", weights, past[1])
                np.testing.assert_allclose(got[:, 0], want, atol=5e-3)
                lengths += 1


def test_what_nothing_needs_is_not_computed(kit):
    g = GraphBuilder(kit.backend, "lazy")
    x = g.input("x", DType.F32, 4)
    g.exp(g.exp(x))
    g.output("out", g.scale(x, 2.0))
    with g.build() as graph:
        assert graph.n_nodes == 1


def test_every_output_keeps_its_value(kit):
    """Also a view, an input, and what later operations would compute in place."""
    with Store(kit.backend) as store:
        constant = store.new(DType.F32, 4)
        store.allocate()
        store.write(constant, ramp(4))
        g = GraphBuilder(kit.backend, "outputs")
        x = g.input("x", DType.F32, 4, 2)
        double = g.scale(x, 2.0)
        half = g.narrow(double, 1, 1, 1)
        g.output("view", half)
        g.output("double", double)
        g.output("input", x)
        g.output("store", constant)
        g.output("late", g.scale(g.scale(g.scale(double, 3.0), 5.0), 7.0))
        with g.build() as graph:
            got = graph.run(x=ramp(2, 4))
    assert got["view"].ravel().tolist() == [8, 10, 12, 14]
    assert (got["double"][0, 0] == ramp(2, 4) * 2).all()
    assert (got["input"][0, 0] == ramp(2, 4)).all()
    assert (got["store"].ravel() == ramp(4)).all()
    assert (got["late"][0, 0] == ramp(2, 4) * 210).all()


def test_an_index_that_names_no_row_is_refused_before_it_runs(kit):
    store, table, _ = kit.stored(ramp(5, 4))
    g = GraphBuilder(kit.backend, "lookup")
    index = g.input("index", DType.I32, 2)
    g.output("out", g.get_rows(table, g.reshape(index, 2, 1)))
    g.set_rows(table, g.input("rows", DType.F32, 4, 1), g.input("cell", DType.I64, 1))
    with store, g.build() as graph:
        for wrong in ([0, 5], [-1, 0]):
            with pytest.raises(EngineError, match=r"lookup: input index holds -?\d\.\.\d for 5 rows"):
                graph.run(index=np.array(wrong, np.int32))
        graph.set("index", np.array([4, 0], np.int32))
        with pytest.raises(EngineError, match="cell"):
            graph.run(cell=np.array([2**40]))
        assert (graph.run(cell=np.array([4]))["out"][0, 0] == ramp(5, 4)[[4, 0]]).all()


def test_what_the_backend_cannot_compute_is_refused_where_it_is_built(kit, monkeypatch):
    """The processor computes all that passes the checks, so the answer of a GPU is put in its mouth."""
    monkeypatch.setattr(kit.backend.native, "ggml_backend_supports_op", lambda backend, tensor: False)
    g = GraphBuilder(kit.backend, "slow")
    x, w = g.input("x", DType.F32, 4), g.input("w", DType.F32, 4, 3)
    with pytest.raises(UnsupportedOperation, match=r"slow: cpu cannot compute mul_mat\(f32\[4, 3\], f32\[4\]\)"):
        g.mul_mat(w, x)


def test_inputs_are_checked(kit):
    g = GraphBuilder(kit.backend, "strict")
    g.output("out", g.scale(g.input("x", DType.F32, 4, 2), 1.0))
    with pytest.raises(ShapeError, match="x"):
        g.input("x", DType.F32, 1)
    with pytest.raises(ShapeError, match="out"):
        g.output("out", g.input("y", DType.F32, 1))
    with g.build() as graph:
        for wrong in (ramp(4, 2), ramp(2, 4).astype(np.float64), ramp(1, 2, 4)):
            with pytest.raises(ShapeError, match=r"input x takes float32\[2, 4\]"):
                graph.set("x", wrong)
        with pytest.raises(EngineError, match="no input z"):
            graph.set("z", ramp(1))
        with pytest.raises(EngineError, match="no output z"):
            graph.read("z")


def test_what_is_closed_cannot_be_used(kit):
    store = Store(kit.backend)
    weight = store.new(DType.F32, 4)
    with pytest.raises(ShapeError, match="has no memory"):
        GraphBuilder(kit.backend, "early").scale(weight, 1.0)
    with pytest.raises(EngineError, match="declared"):
        store.read(weight)
    store.allocate()
    with pytest.raises(EngineError, match="allocated"):
        store.new(DType.F32, 4)
    g = GraphBuilder(kit.backend, "late")
    view = g.narrow(weight, 0, 0, 2)
    g.output("out", g.scale(weight, 1.0))
    graph = g.build()
    with pytest.raises(EngineError, match="is built"):
        g.scale(weight, 1.0)
    foreign = GraphBuilder(kit.backend, "other").input("x", DType.F32, 4)
    with pytest.raises(ShapeError, match="another graph"):
        GraphBuilder(kit.backend, "third").scale(foreign, 1.0)
    with pytest.raises(EngineError, match="not made by this store"):
        store.write(view, ramp(2))
    store.close()
    store.close()
    with pytest.raises(EngineError, match="closed"):
        graph.run()
    with pytest.raises(EngineError, match="closed"):
        store.read(weight)
    graph.close()
    graph.close()
    with pytest.raises(EngineError, match="closed"):
        graph.read("out")
    backend = Backend.open("cpu", threads=1)
    backend.close()
    backend.close()
    with pytest.raises(EngineError, match="closed"):
        backend.synchronize()


def test_views_are_no_kernels(kit):
    g = GraphBuilder(kit.backend, "views")
    x = g.input("x", DType.F32, 4, 2)
    g.output("out", g.scale(g.reshape(x, 8), 2.0, 0.0))
    with g.build() as graph:
        assert (graph.n_nodes, graph.n_kernels) == (2, 1)


def test_an_empty_graph_is_refused(kit):
    g = GraphBuilder(kit.backend, "empty")
    g.input("x", DType.F32, 4)
    with pytest.raises(EngineError, match="empty: a graph needs an output"):
        g.build()


def test_a_graph_larger_than_any_context(kit):
    """Headers go to one context after the other; ggml ends the process when one is full."""
    g = GraphBuilder(kit.backend, "long")
    x = g.input("x", DType.F32, 4)
    y = x
    for _ in range(3000):
        y = g.scale(y, 1.0, 1.0)
    g.output("out", y)
    with g.build() as graph:
        assert graph.n_nodes == graph.n_kernels == 3000
        assert (graph.run(x=ramp(4))["out"].ravel() == ramp(4) + 3000).all()


def test_memory_is_flat_over_runs_and_builds(kit):
    def life():
        with Store(kit.backend) as store:
            weight = store.new(DType.F16, 256, 64)
            store.allocate()
            g = GraphBuilder(kit.backend, "life")
            x = g.input("x", DType.F32, 256, 16)
            g.output("out", g.mul_mat(weight, x))
            with g.build() as graph:
                for _ in range(20):
                    graph.run(x=np.zeros((16, 256), np.float32))

    def resident():
        return psutil.Process().memory_info().rss

    for _ in range(20):
        life()
    start = resident()
    for _ in range(50):
        life()
    assert resident() - start < 2 * 2**20

    g = GraphBuilder(kit.backend, "steady")
    g.output("out", g.exp(g.input("x", DType.F32, 1000)))
    x = np.zeros(1000, np.float32)
    with g.build() as graph:
        for _ in range(100):
            graph.run(x=x)
        start = resident()
        for _ in range(1000):
            graph.run(x=x)
        assert resident() - start < 2**20
