"""Whether a thread that computes comes back: a native call that waits for a GPU in trouble may never do."""

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from types import TracebackType

_log = logging.getLogger(__name__)

#: A piece of a prompt, a frame or a block takes a GPU less than a second, or a few where others use it, too.
_HUNG_S = 30.0
_LOOK_S = 1.0

#: EX_OSERR
_STATUS = 71


class Pulse:
    """Entered by the thread around what it computes, read by another one."""

    def __init__(self) -> None:
        self._since: float | None = None

    @property
    def busy_s(self) -> float:
        """How long it has been at it; 0 where it is not."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def __enter__(self) -> None:
        self._since = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._since = None


async def end_if_hung(pulses: Sequence[Pulse]) -> None:
    """End the process where one of them hangs, so that another worker can begin: nothing else stops a native call."""
    while True:
        await asyncio.sleep(_LOOK_S)
        if max(pulse.busy_s for pulse in pulses) > _HUNG_S:
            _log.critical("the GPU has not answered for %.0f s: this worker ends", _HUNG_S)
            os._exit(_STATUS)
