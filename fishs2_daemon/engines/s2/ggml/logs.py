"""ggml's messages as Python log records of the logger `fishs2_daemon.engines.s2.ggml`."""

import atexit
import logging
from typing import Any

_log = logging.getLogger("fishs2_daemon.engines.s2.ggml")

# ggml tells the owner of a program what it found; to the owner of a daemon that is detail.
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}
_CONTINUES = 5

#: Callbacks live as long as the process: ggml may call them from any thread.
_kept: list[Any] = []


def route_log(library: Any) -> None:
    """Send the messages of a loaded `Library` to `logging` until the interpreter ends, then to standard error again."""
    ffi = library.ffi
    pending: list[str] = []
    level = logging.DEBUG

    def receive(ggml_level: int, text: Any, user_data: Any) -> None:
        nonlocal level
        if ggml_level != _CONTINUES:
            level = _LEVELS.get(ggml_level, logging.DEBUG)
        pending.append(ffi.string(text).decode(errors="replace"))
        if pending[-1].endswith("\n"):
            message = "".join(pending).strip()
            pending.clear()
            if message:
                _log.log(level, "%s", message)

    try:
        callback = ffi.callback("ggml_log_callback", receive, onerror=_ignore)
    except MemoryError:
        # A process that may not map executable memory has no callbacks; standard error is read all the same.
        return
    _kept.append(callback)
    library.ggml_log_set(callback, ffi.NULL)
    atexit.register(library.ggml_log_set, ffi.NULL, ffi.NULL)


def _ignore(kind: object, error: object, trace: object) -> None:
    """A message that cannot be logged is lost; nothing may be raised into native code."""
