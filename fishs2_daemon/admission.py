"""Who speaks now, who waits, who is refused."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fishs2_daemon.errors import Busy


class Admission:
    """A first-come first-served queue in front of the engine's slots, bounded in length and in time."""

    def __init__(self) -> None:
        self.slots = 1
        self.running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def slot(self, max_waiting: int, timeout_s: float) -> AsyncIterator[None]:
        """Hold a slot. Raises `Busy` at once when `max_waiting` others wait, or after `timeout_s`."""
        await self._acquire(max_waiting, timeout_s)
        try:
            yield
        finally:
            self.running -= 1
            self._admit()

    async def _acquire(self, max_waiting: int, timeout_s: float) -> None:
        if self.running < self.slots and not self._waiting:
            self.running += 1
            return
        if len(self._waiting) >= max_waiting:
            raise Busy(f"{self.running} texts are being spoken and {len(self._waiting)} wait; try again in a moment")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(timeout_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                # The slot was given in the very moment of giving up: pass it on.
                self.running -= 1
                self._admit()
            elif turn in self._waiting:  # else a slot that became free in that moment has passed it over
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise Busy(f"no slot became free within {timeout_s:.0f} s; try again", retry_after_s=5) from None
            raise

    def _admit(self) -> None:
        while self._waiting and self.running < self.slots:
            turn = self._waiting.popleft()
            if not turn.done():
                self.running += 1
                turn.set_result(None)
