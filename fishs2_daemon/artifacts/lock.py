"""One process at a time writes a file."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fishs2_daemon.artifacts.artifact import MODELS_DIR
from fishs2_daemon.artifacts.errors import ArtifactError

try:
    import fcntl
except ImportError:  # Windows: the worker does not run there either
    fcntl = None  # type: ignore[assignment]


@contextmanager
def writing(file: Path, wait: Callable[[], None], *, setting: str = MODELS_DIR) -> Iterator[bool]:
    """Hold the lock of `file`; true where somebody else had it first. The kernel opens it when its holder dies.

    `wait` is called before the waiting begins, which lasts as long as the holder takes: it moves bytes, or ends by the
    bounds of its own waits. `setting` is what the user sets to another folder. Raises `ArtifactError` where the folder
    cannot be written, and whatever `wait` raises.
    """
    path = file.with_name(f".{file.name}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    except OSError as error:
        raise ArtifactError(
            f"{file.parent}: cannot be written ({error.strerror}); name another folder with {setting}"
        ) from None
    try:
        try:
            waited = _acquire(lock, wait)
        except OSError as error:
            raise ArtifactError(
                f"{path}: cannot be locked ({error.strerror}); name a folder on a disk of this machine with {setting}"
            ) from None
        yield waited
    finally:
        os.close(lock)


def _acquire(lock: int, wait: Callable[[], None]) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        wait()
        fcntl.flock(lock, fcntl.LOCK_EX)
        return True
    return False
