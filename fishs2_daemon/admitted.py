"""A text's phrases, each of which is spoken only while the text holds a slot."""

import asyncio
from typing import Self

from fishs2_daemon.admission import Slot
from fishs2_daemon.text.feed import PhraseFeed
from fishs2_daemon.text.phrase import Phrase


class AdmittedPhrases:
    """A feed's phrases, the first of them taken before; as safe to cancel as the feed itself. Where the slot was lent,
    the next one waits for it."""

    def __init__(self, first: Phrase, feed: PhraseFeed, slot: Slot) -> None:
        self.slot = slot
        self._next: Phrase | None = first
        self._feed = feed
        self._waits = False
        self._waited_until = 0.0

    @property
    def is_starved(self) -> bool:
        """Whether the engine has nothing to speak, and that is not its own fault."""
        return self._waits or self._feed.is_starved

    @property
    def moved_at(self) -> float:
        return max(self._feed.moved_at, self._waited_until)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Phrase:
        if self._next is None:
            self._next = await anext(self._feed)
        if self.slot.is_lent:
            self._waits = True
            try:
                await self.slot.take_again()
            finally:
                self._waits = False
                self._waited_until = asyncio.get_running_loop().time()
        phrase, self._next = self._next, None
        return phrase
