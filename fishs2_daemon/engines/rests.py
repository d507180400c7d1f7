"""Texts that do not go on: others may need what they hold."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from fishs2_daemon.text.phrase import Phrase

#: A text whose next phrase does not come for so long keeps nothing from others.
_REST_S = 2.0


async def with_rests(phrases: AsyncIterator[Phrase]) -> AsyncGenerator[Phrase | None, None]:
    """The phrases, and a None before one that does not come for a while."""
    while True:
        reading = asyncio.ensure_future(anext(phrases, None))
        try:
            if not (await asyncio.wait([reading], timeout=_REST_S))[0]:
                yield None
            if (phrase := await reading) is None:
                return
            yield phrase
        finally:
            if not reading.done():
                reading.cancel()
                await asyncio.wait([reading])
