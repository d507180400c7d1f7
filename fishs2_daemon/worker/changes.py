"""Who waits for something to change is woken by the next change."""

import asyncio


class Changes:
    def __init__(self) -> None:
        self._next = asyncio.Event()

    def announce(self) -> None:
        # Whoever waits has the old event; the next to wait takes a new one.
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self) -> None:
        await self._next.wait()
