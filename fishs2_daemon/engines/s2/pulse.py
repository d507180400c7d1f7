"""Whether a thread that computes comes back: a native call that waits for a GPU in trouble may never do."""

import asyncio
import logging
import os
from collections.abc import Sequence
from types import TracebackType

_log = logging.getLogger(__name__)

#: A piece of a prompt, a frame or a block takes a GPU less than a second, or a few where others use it, too.
_HUNG_S = 30.0
_LOOK_S = 1.0

#: EX_OSERR
_STATUS = 71


class Pulse:
    """Entered by the thread around each of its rounds, read by another one."""

    def __init__(self) -> None:
        self.rounds = 0
        self.is_busy = False

    def __enter__(self) -> None:
        self.rounds += 1
        self.is_busy = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.is_busy = False


async def end_if_hung(pulses: Sequence[Pulse]) -> None:
    """End the process where one of them hangs, so that another worker can begin: nothing else stops a native call.

    Counted in looks, not by the clock: a process that was itself held up must not blame its GPU.
    """
    rounds, hangs_s = [0 for _ in pulses], [0.0 for _ in pulses]
    while max(hangs_s) < _HUNG_S:
        await asyncio.sleep(_LOOK_S)
        for index, pulse in enumerate(pulses):
            is_same = pulse.is_busy and pulse.rounds == rounds[index]
            hangs_s[index] = hangs_s[index] + _LOOK_S if is_same else 0.0
            rounds[index] = pulse.rounds
    _log.critical("the GPU has not answered for %.0f s: this worker ends", _HUNG_S)
    os._exit(_STATUS)
