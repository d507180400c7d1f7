"""One writer or many readers of a voices folder, among threads and processes of one machine.

A writer first closes the gate, through which every reader passes, and then waits for the readers inside: readers that
never pause cannot keep it out. The kernel opens both locks when their process ends, however it ends.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fishs2_daemon.errors import Busy

try:
    import fcntl
except ImportError:  # Windows: the worker does not run there either
    fcntl = None  # type: ignore[assignment]

#: A holder that takes longer than this is stopped (SIGSTOP) or on a dead network disk.
WAIT_S = 10.0

_POLL_S = 0.001


class FolderLock:
    """Locks on two files in `folder`, which exists before `exclusive` is called. Both raise `Busy` after `WAIT_S`."""

    def __init__(self, folder: Path) -> None:
        self._gate = folder / "gate"
        self._lock = folder / "lock"

    @contextmanager
    def shared(self) -> Iterator[bool]:
        """False where nobody has written yet, so that there is nothing to lock: readers may not be able to write."""
        try:
            gate, lock = _open(self._gate, os.O_RDONLY), _open(self._lock, os.O_RDONLY)
        except (FileNotFoundError, PermissionError):
            yield False
            return
        with _held(lock):
            with _held(gate):
                _acquire(gate, exclusive=False)
                _acquire(lock, exclusive=False)
            yield True

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Raises OSError where the files cannot be made."""
        flags = os.O_RDWR | os.O_CREAT
        with _held(_open(self._lock, flags)) as lock, _held(_open(self._gate, flags)) as gate:
            _acquire(gate, exclusive=True)
            _acquire(lock, exclusive=True)
            yield


def is_owned(path: Path) -> bool:
    """Whether a living process holds `path` by `own`."""
    try:
        file = _open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    except PermissionError:  # somebody else's, to clean up or not
        return True
    with _held(file):
        return not _try(file, exclusive=True)


@contextmanager
def own(path: Path) -> Iterator[None]:
    """Makes `path` and holds it."""
    with _held(_open(path, os.O_RDWR | os.O_CREAT)) as file:
        _acquire(file, exclusive=True)
        yield


def _open(path: Path, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0), 0o666)


@contextmanager
def _held(file: int) -> Iterator[int]:
    try:
        yield file
    finally:
        os.close(file)


def _acquire(file: int, *, exclusive: bool) -> None:
    deadline = time.monotonic() + WAIT_S
    while not _try(file, exclusive=exclusive):
        if time.monotonic() > deadline:
            raise Busy(f"another process has kept the voice store locked for {WAIT_S:g} s")
        time.sleep(_POLL_S)


def _try(file: int, *, exclusive: bool) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
