"""Two names of one file system change places in one step (renameat2(2), RENAME_EXCHANGE)."""

import errno
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2

#: What a file system or kernel answers that cannot do it.
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


def exchange(one: Path, other: Path) -> bool:
    """False, with nothing changed, where this system or this file system cannot do it. Raises OSError."""
    if sys.platform != "linux":
        return False
    ffi, libc = _libc()
    if libc is None:
        return False
    # ffi.errno is this thread's, and nothing runs in between.
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    failure = ffi.errno
    if failure in _UNSUPPORTED:
        return False
    raise OSError(failure, os.strerror(failure), str(one), None, str(other))


@cache
def _libc() -> tuple[Any, Any]:
    """Made at the first exchange: cffi takes 6 MB and 70 ms."""
    import cffi

    ffi = cffi.FFI()
    ffi.cdef("int renameat2(int olddirfd, const char *old, int newdirfd, const char *new, unsigned int flags);")
    libc: Any = ffi.dlopen(None)
    try:
        libc.renameat2  # noqa: B018 - looked up here; glibc has it since 2.28
    except AttributeError:
        return ffi, None
    return ffi, libc
