"""The one thread that calls libs2, and the way of its sound to the event loop."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fishs2_daemon.engines.s2cpp.samples import SAMPLE_BYTES, SAMPLE_RATE
from fishs2_daemon.errors import EngineError

_T = TypeVar("_T")

#: A thread that is this far ahead of its listener waits: one second. More is on its way in the daemon.
AHEAD_BYTES = SAMPLE_BYTES * SAMPLE_RATE


class NativeThread:
    """One call after the other. A pipeline is not safe for two at once, and its random numbers belong to a thread."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="s2cpp")

    async def run(self, work: Callable[[], _T]) -> _T:
        """Who is cancelled here stays until the call has returned: before that its pipeline is not free."""
        try:
            job = self._executor.submit(work)
        except RuntimeError:
            raise EngineError("libs2 is not loaded") from None
        done = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(done)
        finally:
            if not done.done() and not job.cancel():
                await asyncio.wait([done])
            if done.done() and not done.cancelled():
                done.exception()  # nobody may be left to look at it

    def end(self) -> None:
        """Does not wait for a call that still runs."""
        self._executor.shutdown(wait=False)


class Handover:
    """Made on the loop. Any thread may `put` and `end`; what has gathered is taken at once.

    What lies here is bounded by `ahead_bytes` and the last block that was put.
    """

    def __init__(self, ahead_bytes: int = AHEAD_BYTES) -> None:
        self._ahead_bytes = ahead_bytes
        self._loop = asyncio.get_running_loop()
        self._came = asyncio.Event()
        self._changed = threading.Condition()
        self._gathered = bytearray()
        self._ended = False
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def put(self, samples: bytes) -> bool:
        """Waits while the listener is behind. False where there is none any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._cancelled or len(self._gathered) < self._ahead_bytes)
            if self._cancelled:
                return False
            self._gathered += samples
        self._loop.call_soon_threadsafe(self._came.set)
        return True

    def end(self) -> None:
        """Nothing more is put."""
        with self._changed:
            self._ended = True
        self._loop.call_soon_threadsafe(self._came.set)

    def cancel(self) -> None:
        """Nobody listens any more: whoever waits to put goes on at once."""
        with self._changed:
            self._cancelled = True
            self._gathered.clear()
            self._changed.notify_all()

    async def take(self) -> bytes:
        """What has gathered since the last call, or nothing after the end."""
        while True:
            await self._came.wait()
            self._came.clear()
            with self._changed:
                samples, ended = bytes(self._gathered), self._ended
                self._gathered.clear()
                self._changed.notify_all()
            if ended:
                self._came.set()
            if samples or ended:
                return samples
