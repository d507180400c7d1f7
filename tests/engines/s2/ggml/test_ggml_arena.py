"""Graphs that take turns in one memory."""

from itertools import permutations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fishs2_daemon.engines.s2.ggml import Arena, DType, Graph, GraphBuilder
from fishs2_daemon.engines.s2.graphs import Graphs
from fishs2_daemon.errors import EngineError

WIDTH = 64


def chain(kit: Any, arena: Arena | None, columns: int = WIDTH) -> Graph:
    """Products of which each needs the last one only."""
    g = GraphBuilder(kit.backend, "chain")
    m, y = g.input("m", DType.F32, WIDTH, WIDTH), g.input("x", DType.F32, WIDTH, columns)
    for _ in range(7):
        y = g.mul_mat(m, y)
    g.output("y", y)
    return g.build(arena)


def remembering(kit: Any, arena: Arena | None, columns: int = WIDTH) -> Graph:
    """As many nodes of the same sizes; the first product is needed to the end."""
    g = GraphBuilder(kit.backend, "remembering")
    m, x = g.input("m", DType.F32, WIDTH, WIDTH), g.input("x", DType.F32, WIDTH, columns)
    first = y = g.mul_mat(m, x)
    for _ in range(5):
        y = g.mul_mat(m, y)
    g.output("y", g.add(y, first))
    return g.build(arena)


def given(columns: int = WIDTH, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    m = rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 8
    return {"m": m, "x": rng.normal(size=(columns, WIDTH)).astype(np.float32)}


def run(graph: Graph, seed: int = 0) -> np.ndarray:
    y: np.ndarray = graph.run(**given(graph.inputs["x"].shape[0], seed))["y"][0, 0]
    return y


def expected(kit: Any, make: Any, columns: int = WIDTH, seed: int = 0) -> np.ndarray:
    with make(kit, None, columns) as graph:
        return run(graph, seed)


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_graphs_are_right_in_any_order(kit: Any, order: tuple[int, ...]) -> None:
    """Those of one shape and of another, the largest built first, then run in turns."""
    kinds = [(remembering, 2 * WIDTH), (chain, 2 * WIDTH), (chain, WIDTH), (remembering, 3)]
    arena = Arena(kit.backend)
    graphs = [make(kit, arena, columns) for make, columns in kinds]
    for seed in range(2):
        for index in order:
            make, columns = kinds[index]
            assert np.array_equal(run(graphs[index], seed), expected(kit, make, columns, seed))
    for graph in graphs:
        graph.close()
    arena.close()


def test_a_graph_of_as_many_nodes_is_placed_for_itself(kit: Any) -> None:
    """ggml's allocator takes it for the one before, in whose places the first product would be overwritten."""
    arena = Arena(kit.backend)
    before, after = chain(kit, arena, 2 * WIDTH), remembering(kit, arena)
    assert before.n_nodes == after.n_nodes
    assert np.array_equal(run(after), expected(kit, remembering))
    assert np.array_equal(run(before), expected(kit, chain, 2 * WIDTH))
    for graph in (before, after):
        graph.close()
    arena.close()


def test_a_larger_graph_makes_the_others_stale(kit: Any) -> None:
    arena = Arena(kit.backend)
    small = remembering(kit, arena)
    held = arena.n_bytes
    same = chain(kit, arena)
    assert not small.stale
    large = chain(kit, arena, 4 * WIDTH)
    assert arena.n_bytes > held
    assert (small.stale, same.stale, large.stale) == (True, True, False)
    with pytest.raises(EngineError, match="closed"):
        small.start()
    with pytest.raises(EngineError, match="closed"):
        same.read("y")
    assert np.array_equal(run(large), expected(kit, chain, 4 * WIDTH))
    for graph in (small, same, large):
        graph.close()
    arena.close()


def test_graphs_rebuilds_those_that_are_stale(kit: Any) -> None:
    graphs = Graphs(kit.backend, 8)
    built: list[int] = []

    def get(columns: int) -> Graph:
        def build(arena: Arena) -> Graph:
            built.append(columns)
            return remembering(kit, arena, columns)

        return graphs.get(columns, build)

    first = get(4)
    for columns in (4, 64, 4, 64, 32, 4):
        assert np.array_equal(run(get(columns)), expected(kit, remembering, columns))
    assert built == [4, 64, 4, 32]
    with pytest.raises(EngineError):
        first.start()
    held = graphs.n_bytes
    graphs.clear()
    assert graphs.n_bytes == held > 0  # the arena stays
    assert np.array_equal(run(get(64)), expected(kit, remembering, 64))
    graphs.close()
    graphs.close()
    assert graphs.n_bytes == 0


def test_the_oldest_graph_goes_first(kit: Any) -> None:
    graphs = Graphs(kit.backend, 2)
    built: list[int] = []

    def get(columns: int) -> Graph:
        def build(arena: Arena) -> Graph:
            built.append(columns)
            return chain(kit, arena, columns)

        return graphs.get(columns, build)

    for columns in (64, 32, 64, 16, 64, 32):
        get(columns)
    assert built == [64, 32, 16, 32]
    graphs.close()


def test_a_closed_arena_is_an_error_and_no_crash(kit: Any) -> None:
    arena = Arena(kit.backend)
    graph = chain(kit, arena)
    arena.close()
    arena.close()
    assert arena.n_bytes == 0
    assert graph.stale
    with pytest.raises(EngineError, match="closed"):
        graph.start()
    graph.close()
    with pytest.raises(EngineError, match="given back"):
        chain(kit, arena)


def test_no_memory_for_a_graph(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """ggml has given up what there was by then: whoever is asked for next is built anew."""
    graphs = Graphs(kit.backend, 4)
    small = graphs.get("small", lambda arena: chain(kit, arena, 8))
    arena = graphs._arena
    native = kit.backend.native

    class Full:
        def __getattr__(self, name: str) -> Any:
            return getattr(native, name)

        def ggml_gallocr_alloc_graph(self, *_: object) -> bool:
            return False

    with monkeypatch.context() as full:
        full.setattr(
            arena,
            "backend",
            SimpleNamespace(**{**vars(kit.backend), "native": Full()}, synchronize=kit.backend.synchronize),
        )
        with pytest.raises(EngineError, match="chain: there is not enough memory on cpu"):
            graphs.get("large", lambda arena: chain(kit, arena, 512))
    assert small.stale
    for _ in range(2):
        again = graphs.get("small", lambda arena: chain(kit, arena, 8))
        assert np.array_equal(run(again), expected(kit, chain, 8))
    assert np.array_equal(run(graphs.get("large", lambda arena: chain(kit, arena, 512))), expected(kit, chain, 512))
    graphs.close()
