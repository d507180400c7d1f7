"""Texts that do not go on: others may need what they hold."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from fishs2_daemon.text.phrase import Phrase

#: Phrases follow each other faster, unless their writer has paused.
_REST_S = 0.5


async def with_rests(phrases: AsyncIterator[Phrase]) -> AsyncGenerator[Phrase | None, None]:
    """The phrases, and a None every now and then while the next one does not come."""
    while True:
        reading = asyncio.ensure_future(anext(phrases, None))
        try:
            while not (await asyncio.wait([reading], timeout=_REST_S))[0]:
                yield None
            if (phrase := reading.result()) is None:
                return
            yield phrase
        finally:
            if not reading.done():
                reading.cancel()
                await asyncio.wait([reading])
