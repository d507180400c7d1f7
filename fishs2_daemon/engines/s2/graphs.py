"""Graphs that were built before, a bounded number of them, in memory that they share."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

from fishs2_daemon.engines.s2.ggml import Arena, Backend, Graph


class Graphs:
    """The `limit` graphs that were used last, by key; older ones are closed.

    One is run at a time, and its outputs are read before the next one runs: see `Arena`.
    """

    def __init__(self, backend: Backend, limit: int, *, shares_values: bool = False) -> None:
        """`shares_values`: see `Arena`."""
        self._arena = Arena(backend, shares_values=shares_values)
        self._limit = limit
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()

    def get(self, key: Hashable, build: Callable[[Arena], Graph]) -> Graph:
        graph = self._graphs.get(key)
        if graph is not None and graph.stale:
            graph.close()
            del self._graphs[key]
            graph = None
        if graph is None:
            while len(self._graphs) >= self._limit:
                self._graphs.popitem(last=False)[1].close()
            graph = self._graphs[key] = build(self._arena)
        self._graphs.move_to_end(key)
        return graph

    @property
    def n_bytes(self) -> int:
        """Memory on the device."""
        return self._arena.n_bytes

    def clear(self) -> None:
        """Close the graphs, as before the tensors go that they are about."""
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()

    def close(self) -> None:
        """May be called twice."""
        self.clear()
        self._arena.close()
