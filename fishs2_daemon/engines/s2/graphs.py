"""Graphs that were built before, a bounded number of them."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

from fishs2_daemon.engines.s2.ggml import Graph


class Graphs:
    """The `limit` graphs that were used last, by key; older ones are closed."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()

    def get(self, key: Hashable, build: Callable[[], Graph]) -> Graph:
        graph = self._graphs.get(key)
        if graph is None:
            while len(self._graphs) >= self._limit:
                self._graphs.popitem(last=False)[1].close()
            graph = self._graphs[key] = build()
        self._graphs.move_to_end(key)
        return graph

    def close(self) -> None:
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
