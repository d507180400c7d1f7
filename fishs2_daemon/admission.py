"""Who speaks now, who waits, who is refused."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

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
    #: Whoever is in the middle of a text is not.
    may_be_refused: bool
    passed_over: int = 0


class Admission:
    """A queue in front of the engine's slots, bounded in length and in time: conversations first, then first come,
    first served."""

    def __init__(self, slots: Callable[[], int]) -> None:
        """`slots` is asked again and again; where there are more of them, call `admit`."""
        self._slots = slots
        self.running = 0
        #: Slots that conversations have lent: to other conversations, which are short.
        self._lent_by_conversations = 0
        self._waiting: list[_Waiter] = []

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def slot(self, priority: Priority, max_waiting: int, timeout_s: float) -> AsyncIterator["Slot"]:
        """Hold a slot. Raises `Busy` at once when `max_waiting` others wait, or after `timeout_s`."""
        await self._acquire(priority, max_waiting, timeout_s)
        slot = Slot(self, priority, timeout_s)
        try:
            yield slot
        finally:
            if slot.is_lent:
                self._end_lending(priority)
            else:
                self.running -= 1
            self.admit()

    def lend(self, priority: Priority) -> None:
        """Use `Slot.lend`."""
        self.running -= 1
        self._lent_by_conversations += priority is Priority.CONVERSATION
        self.admit()

    async def take_again(self, priority: Priority, timeout_s: float) -> None:
        """Use `Slot.take_again`."""
        await self._acquire(priority, None, timeout_s)
        self._end_lending(priority)

    def _end_lending(self, priority: Priority) -> None:
        self._lent_by_conversations -= priority is Priority.CONVERSATION

    async def _acquire(self, priority: Priority, max_waiting: int | None, timeout_s: float) -> None:
        if self._has_room(priority) and not any(waiter.priority <= priority for waiter in self._waiting):
            self.running += 1
            return
        if max_waiting is not None and len(self._waiting) >= max_waiting:
            self._refuse_one(priority)
        waiter = _Waiter(priority, asyncio.get_running_loop().create_future(), max_waiting is not None)
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter.turn
        except BaseException as error:
            if waiter.turn.done() and not waiter.turn.cancelled() and waiter.turn.exception() is None:
                # The slot was given in the very moment of giving up: pass it on.
                self.running -= 1
                self.admit()
            elif waiter in self._waiting:  # else a slot that became free in that moment has passed it over
                self._waiting.remove(waiter)
            if isinstance(error, TimeoutError):
                raise Busy(f"no slot became free within {timeout_s:.0f} s; try again", retry_after_s=5) from None
            raise

    def _refuse_one(self, priority: Priority) -> None:
        """The queue is full: the last of those who wait with less priority goes; where there is none, the newcomer."""
        busy = Busy(f"{self.running} texts are being spoken and {len(self._waiting)} wait; try again in a moment")
        less = (waiter for waiter in reversed(self._waiting) if waiter.priority > priority and waiter.may_be_refused)
        last = next(less, None)
        if last is None or last.turn.done():
            raise busy
        self._waiting.remove(last)
        last.turn.set_exception(busy)

    def _has_room(self, priority: Priority) -> bool:
        slots = self._slots()
        if priority is Priority.CONVERSATION:
            return self.running < slots
        return self.running + self._lent_by_conversations < slots - (slots >= _RESERVING)

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


class Slot:
    """The right to have a text spoken. It may be lent to others, and be waited for anew."""

    def __init__(self, admission: Admission, priority: Priority, timeout_s: float) -> None:
        """Use `Admission.slot`."""
        self.is_lent = False
        self._admission = admission
        self._priority = priority
        self._timeout_s = timeout_s

    def lend(self) -> None:
        """May be called twice. Long texts do not get what a conversation lends, as it could not get it back in time."""
        if not self.is_lent:
            self.is_lent = True
            self._admission.lend(self._priority)

    async def take_again(self) -> None:
        """Behind whoever has more right to it. Raises `Busy`."""
        if self.is_lent:
            await self._admission.take_again(self._priority, self._timeout_s)
            self.is_lent = False
