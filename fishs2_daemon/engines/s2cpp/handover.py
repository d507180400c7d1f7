"""From the thread that computes sound to the event loop."""

import asyncio
import threading

from fishs2_daemon.engines.s2cpp.samples import SAMPLE_BYTES, SAMPLE_RATE

#: A thread that is this far ahead of its listener waits: one second. More is on its way in the daemon.
AHEAD_BYTES = SAMPLE_BYTES * SAMPLE_RATE


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
