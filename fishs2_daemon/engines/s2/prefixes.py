"""What prompts begin with, kept ready: a voice that was heard before does not have to be read again."""

from collections import OrderedDict
from collections.abc import Callable

from fishs2_daemon.engines.s2.kv import Snapshot
from fishs2_daemon.errors import EngineError


class Prefixes:
    """Snapshots by the columns that they stand for, of `most_bytes` together; those that were not used for the
    longest time go first."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._snapshots: OrderedDict[bytes, Snapshot] = OrderedDict()

    @property
    def n_bytes(self) -> int:
        return sum(snapshot.n_bytes for snapshot in self._snapshots.values())

    def __len__(self) -> int:
        return len(self._snapshots)

    def get(self, columns: bytes) -> Snapshot | None:
        if snapshot := self._snapshots.get(columns):
            self._snapshots.move_to_end(columns)
            return snapshot
        return None

    def keep(self, columns: bytes, n_bytes: int, save: Callable[[], Snapshot]) -> None:
        """`save` is called where there is room for the `n_bytes` that it takes. No memory on the device is no error:
        the prompt is read again next time."""
        if columns in self._snapshots or n_bytes > self._most_bytes:
            return
        while self.n_bytes + n_bytes > self._most_bytes:
            self._snapshots.popitem(last=False)[1].close()
        try:
            self._snapshots[columns] = save()
        except EngineError:
            self.clear()

    def clear(self) -> None:
        for snapshot in self._snapshots.values():
            snapshot.close()
        self._snapshots.clear()
