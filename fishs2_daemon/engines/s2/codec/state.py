"""What streams carry from one pass to the next: the columns that causal operations look back on (7.5).

The pool is a matrix [floats of a state, slots], a row for each open stream; a row holds the histories of every
convolution's input, and of every attention's keys and values, one after another.
"""

from dataclasses import dataclass

from fishs2_daemon.engines.s2.ggml import Backend, DType, Store, Tensor


@dataclass(frozen=True, slots=True)
class History:
    """The last `columns` columns, of `width` floats each, from float `start` of a state on."""

    start: int
    width: int
    columns: int

    @property
    def n_floats(self) -> int:
        return self.width * self.columns


class StateLayout:
    """Hands out the places in a state."""

    def __init__(self) -> None:
        self.n_floats = 0

    def history(self, width: int, columns: int) -> History:
        place = History(self.n_floats, width, columns)
        self.n_floats += place.n_floats
        return place


class StatePool:
    """The states of all open streams, on the device."""

    def __init__(self, backend: Backend, layout: StateLayout, slots: int) -> None:
        self._backend = backend
        self._layout = layout
        self._free = list(reversed(range(slots)))
        self._make(slots)

    @property
    def full(self) -> bool:
        return not self._free

    @property
    def n_bytes(self) -> int:
        return self._store.n_bytes

    def take(self) -> int:
        """A slot whose state is that of a stream's start: zeros. Not when `full`."""
        slot = self._free.pop()
        n_bytes = self.tensor.strides[1]
        self._store.zero(self.tensor, slot * n_bytes, n_bytes)
        return slot

    def give_back(self, slot: int) -> None:
        self._free.append(slot)

    def double(self) -> None:
        """Twice the slots. Makes another tensor: graphs over the old one must be closed before."""
        states, store = self._store.read(self.tensor), self._store
        slots = self.tensor.shape[1]
        self._make(2 * slots)
        store.close()
        self._store.write_bytes(self.tensor, states)
        self._free.extend(reversed(range(slots, 2 * slots)))

    def close(self) -> None:
        self._store.close()

    @property
    def _width(self) -> int:
        # A model without any history (all kernels 1, windows 1) has nothing to keep, but a tensor has an element.
        return max(1, self._layout.n_floats)

    def _make(self, slots: int) -> None:
        store = Store(self._backend)
        tensor = store.new(DType.F32, self._width, slots)  # [floats, slots]
        store.allocate()
        self._store = store
        self.tensor: Tensor = tensor
