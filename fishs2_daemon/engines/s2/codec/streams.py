"""A causal network over any number of streams: their states, and the graphs that move them on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy.typing as npt

from fishs2_daemon.engines.s2.codec.passes import Pass, Windows
from fishs2_daemon.engines.s2.codec.state import StateLayout, StatePool
from fishs2_daemon.engines.s2.codec.window_attention import WindowTransformer
from fishs2_daemon.engines.s2.ggml import Arena, Backend, Graph, GraphBuilder
from fishs2_daemon.engines.s2.graphs import Graphs
from fishs2_daemon.errors import EngineError

#: Pairs of frames and streams whose graphs are kept.
_GRAPHS = 64

Arrays = Mapping[str, npt.NDArray[Any]]


class Stream:
    """One sequence of frames on its way through a network."""

    def __init__(self, home: "Streams", slot: int) -> None:
        self.home = home
        self.slot = slot
        #: Frames that have passed.
        self.frames = 0
        self.closed = False


class Streams:
    """`emit` puts the network into a pass, inputs and outputs included; `transformers` are those that it holds.

    Graphs are built when they are first needed, one for each pair of frames and streams that pass at once.
    """

    def __init__(
        self,
        backend: Backend,
        name: str,
        layout: StateLayout,
        columns_per_frame: int,
        transformers: Sequence[WindowTransformer],
        emit: Callable[[Pass], None],
        *,
        slots: int,
    ) -> None:
        """`slots` is how many streams there is memory for at first; a state of S2 Pro takes 9 MB, of its encoder 17."""
        self._backend = backend
        self._name = name
        self._columns_per_frame = columns_per_frame
        self._transformers = transformers
        self._emit = emit
        self._pool = StatePool(backend, layout, slots)
        self._windows = Windows(backend, columns_per_frame)
        self._graphs = Graphs(backend, _GRAPHS)
        self._closed = False

    @property
    def device(self) -> str:
        return self._backend.device

    @property
    def n_bytes(self) -> int:
        """Memory of states and graphs on the device."""
        return self._pool.n_bytes + self._graphs.n_bytes

    def open(self) -> Stream:
        self._check_open()
        if self._pool.full:
            self._graphs.clear()
            self._pool.double()
        return Stream(self, self._pool.take())

    def release(self, stream: Stream) -> None:
        if not stream.closed:
            stream.closed = True
            self._pool.give_back(stream.slot)

    def advance(self, streams: Sequence[Stream], frames: int, inputs: Arrays) -> Arrays:
        """Move each stream on by `frames`, and return the outputs. `frames` is what `frames_at_once` allows."""
        self._check_open()
        if any(stream.closed or stream.home is not self for stream in streams) or len(set(streams)) < len(streams):
            raise EngineError(f"{self._name}: a stream is closed, is another's, or is there twice")
        return self._run(self._graph(frames, len(streams)), streams, frames, inputs)

    def build(self, frames: int, streams: int) -> None:
        """Build a graph before it is needed."""
        self._graph(frames, streams)

    def trace(self, frames: int, inputs: Arrays) -> Arrays:
        """Pass the first `frames` of a stream at once: the outputs, and every activation that the parts have noted."""
        stream = self.open()
        windows = Windows(self._backend, self._columns_per_frame, frames)
        try:
            with self._build(windows, frames, 1, every=True) as graph:
                return self._run(graph, [stream], frames, inputs)
        finally:
            windows.close()
            self.release(stream)

    def close(self) -> None:
        """Give the memory back. May be called twice."""
        self._closed = True
        self._graphs.close()
        self._windows.close()
        self._pool.close()

    def _graph(self, frames: int, streams: int) -> Graph:
        key = frames, streams
        return self._graphs.get(key, lambda arena: self._build(self._windows, *key, arena=arena))

    def _build(
        self, windows: Windows, frames: int, streams: int, *, every: bool = False, arena: Arena | None = None
    ) -> Graph:
        g = GraphBuilder(self._backend, f"{self._name} of {frames} frames of {streams} streams")
        p = Pass(g, self._pool.tensor, windows, frames, streams)
        self._emit(p)
        for name, tensor in p.seen.items() if every else ():
            g.output(name, tensor)
        return g.build(arena)

    def _run(self, graph: Graph, streams: Sequence[Stream], frames: int, inputs: Arrays) -> Arrays:
        graph.inputs["slots"][:] = [stream.slot for stream in streams]
        for transformer in self._transformers:
            transformer.fill(graph.inputs, [stream.frames for stream in streams])
        outputs = graph.run(**inputs)
        for stream in streams:
            stream.frames += frames
        return outputs

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError(f"{self._name} is closed")
