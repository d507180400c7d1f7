"""Who speaks now, who waits, who is refused."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from sys import maxsize

from fishs2_daemon.errors import Busy
from fishs2_daemon.speech import Priority

#: From this many slots on, one is kept for conversations: long texts may have taken all the others for hours.
_RESERVING = 4

#: Whoever was passed over this often is let through before all others.
MOST_PASSED_OVER = 8


@dataclass(eq=False, slots=True)
class _Waiter:
    priority: Priority
    turn: asyncio.Future[None]
    passed_over: int = 0


class Slot:
    """The right to have a text spoken. It may be lent to others, and be waited for anew."""

    def __init__(self, give: Callable[[], None], take: Callable[[], Awaitable[None]]) -> None:
        self.is_lent = False
        self._give, self._take = give, take

    def lend(self) -> None:
        """May be called twice."""
        if not self.is_lent:
            self.is_lent = True
            self._give()

    async def take_again(self) -> None:
        """Behind whoever has more right to it. Raises `Busy`."""
        if self.is_lent:
            await self._take()
            self.is_lent = False


class Admission:
    """A queue in front of the engine's slots, bounded in length and in time: conversations first, then first come,
    first served."""

    def __init__(self, slots: Callable[[], int]) -> None:
        """`slots` is asked again and again; where there are more of them, call `admit`."""
        self._slots = slots
        self.running = 0
        self._waiting: list[_Waiter] = []

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def slot(self, priority: Priority, max_waiting: int, timeout_s: float) -> AsyncIterator[Slot]:
        """Hold a slot. Raises `Busy` at once when `max_waiting` others wait, or after `timeout_s`."""
        await self._acquire(priority, max_waiting, timeout_s)
        # Who lent one is in the middle of a text, and not refused because others wait.
        slot = Slot(self._release, partial(self._acquire, priority, maxsize, timeout_s))
        try:
            yield slot
        finally:
            slot.lend()

    def _release(self) -> None:
        self.running -= 1
        self.admit()

    async def _acquire(self, priority: Priority, max_waiting: int, timeout_s: float) -> None:
        if self._has_room(priority) and not any(waiter.priority <= priority for waiter in self._waiting):
            self.running += 1
            return
        if len(self._waiting) >= max_waiting:
            self._refuse_one(priority)
        waiter = _Waiter(priority, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter.turn
        except BaseException as error:
            if waiter.turn.done() and not waiter.turn.cancelled() and waiter.turn.exception() is None:
                # The slot was given in the very moment of giving up: pass it on.
                self._release()
            elif waiter in self._waiting:  # else a slot that became free in that moment has passed it over
                self._waiting.remove(waiter)
            if isinstance(error, TimeoutError):
                raise Busy(f"no slot became free within {timeout_s:.0f} s; try again", retry_after_s=5) from None
            raise

    def _refuse_one(self, priority: Priority) -> None:
        """The queue is full: the last of those who wait with less priority goes; where there is none, the newcomer."""
        busy = Busy(f"{self.running} texts are being spoken and {len(self._waiting)} wait; try again in a moment")
        last = next((waiter for waiter in reversed(self._waiting) if waiter.priority > priority), None)
        if last is None or last.turn.done():
            raise busy
        self._waiting.remove(last)
        last.turn.set_exception(busy)

    def _has_room(self, priority: Priority) -> bool:
        slots = self._slots()
        reserved = slots >= _RESERVING and priority is not Priority.CONVERSATION
        return self.running < slots - reserved

    def admit(self) -> None:
        """Let in those for whom there is room now."""
        self._waiting = [waiter for waiter in self._waiting if not waiter.turn.done()]
        while ready := [waiter for waiter in self._waiting if self._has_room(waiter.priority)]:
            chosen = min(ready, key=lambda waiter: (waiter.passed_over < MOST_PASSED_OVER, waiter.priority))
            for waiter in self._waiting[: self._waiting.index(chosen)]:
                waiter.passed_over += 1
            self._waiting.remove(chosen)
            self.running += 1
            chosen.turn.set_result(None)
