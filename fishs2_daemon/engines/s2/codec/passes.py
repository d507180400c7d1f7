"""One graph over some frames of some streams, while it is built.

Activations are f32 [channels, columns * streams]: channels lie next to each other, a stream's columns follow each
other. So weights are the first operand of every product, in whatever type the file has, and a transposed convolution's
result is its next layer's input without moving anything.
"""

import numpy as np

from fishs2_daemon.engines.s2.codec.state import History
from fishs2_daemon.engines.s2.ggml import Backend, DType, GraphBuilder, Store, Tensor
from fishs2_daemon.engines.s2.sizes import FRAME_COUNTS


def frames_at_once(frames: int, streams: int) -> int:
    """How many of `frames` that are waiting in each of `streams` streams the next pass takes."""
    return next(count for count in FRAME_COUNTS if count == 1 or count <= min(frames, FRAME_COUNTS[0] // streams))


class Windows:
    """Which columns each step of a convolution sees, as tables on the device.

    ggml has no views whose elements overlap, so windows are gathered. A table serves every number of steps up to the
    columns of `most_frames`, of all streams together (but of one frame each, at least).
    """

    def __init__(self, backend: Backend, columns_per_frame: int, most_frames: int = FRAME_COUNTS[0]) -> None:
        self._backend = backend
        self._columns_per_frame = columns_per_frame
        self._most_frames = most_frames
        self._tables: dict[tuple[int, int, int, int], Tensor] = {}
        self._stores: list[Store] = []

    def table(self, kernel: int, stride: int, dilation: int, streams: int) -> Tensor:
        """i32 [kernel * steps, streams]: the columns of step 0, then those of step 1, ..."""
        key = kernel, stride, dilation, streams
        if key not in self._tables:
            steps = self._columns_per_frame * max(1, self._most_frames // streams)
            index = np.arange(steps)[:, None] * stride + np.arange(kernel) * dilation  # [steps, kernel]
            store = Store(self._backend)
            self._stores.append(store)
            table = store.new(DType.I32, index.size, streams)
            store.allocate()
            store.write(table, np.tile(index.astype(np.int32).reshape(1, -1), (streams, 1)))
            self._tables[key] = table
        return self._tables[key]

    def close(self) -> None:
        for store in self._stores:
            store.close()


class Pass:
    """What the codec's parts share while they emit themselves into the graph `g`.

    The streams' states are fetched at the start and written over history by history, so every part sees its stream as
    the last pass left it. `slots`, an input, names the streams' rows in `pool`.
    """

    def __init__(self, g: GraphBuilder, pool: Tensor, windows: Windows, frames: int, streams: int) -> None:
        self.g = g
        self.frames = frames
        self.streams = streams
        #: Activations [channels, columns * streams] by name, for those who compare them.
        self.seen: dict[str, Tensor] = {}
        self._windows = windows
        self._pool = pool
        self._slots = g.input("slots", DType.I32, streams)
        self._state = g.get_rows(pool, self._slots)  # [floats, streams]

    def linear(self, weight: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`weight` [inputs, outputs] on the columns of `x`, accumulated in f32."""
        y = self.g.mul_mat(weight, x, precise=True)
        return y if bias is None else self.g.add(y, bias)

    def by_stream(self, x: Tensor) -> Tensor:
        """[channels, columns * streams] -> [channels, columns, streams]"""
        return self.g.reshape(x, x.shape[0], x.shape[1] // self.streams, self.streams)

    def preceded(self, history: History, x: Tensor) -> Tensor:
        """`x` [width, columns, streams] after the columns that came before it; the last of both are carried on."""
        g = self.g
        if not history.columns:
            return x if x.is_contiguous else g.cont(x)
        shape, nb = (history.width, history.columns, self.streams), (4 * history.width, self._state.strides[1])
        whole = g.concat(g.view(self._state, shape, nb, 4 * history.start), x, 1)
        last = g.narrow(whole, 1, whole.shape[1] - history.columns, history.columns)
        rows = g.reshape(last if last.is_contiguous else g.cont(last), history.n_floats, self.streams)
        g.set_rows(g.narrow(self._pool, 0, history.start, history.n_floats), rows, self._slots)
        return whole

    def windows(self, x: Tensor, kernel: int, stride: int, dilation: int) -> Tensor:
        """[width, columns, streams] -> [width * kernel, steps * streams], a window's oldest column first."""
        g, (width, columns, streams, _) = self.g, x.shape
        steps = (columns - (kernel - 1) * dilation - 1) // stride + 1
        if kernel == stride and dilation == 1:
            return g.reshape(x, width * kernel, steps * streams)
        table = g.narrow(self._windows.table(kernel, stride, dilation, streams), 0, 0, kernel * steps)
        return g.reshape(g.get_rows(x, table), width * kernel, steps * streams)
