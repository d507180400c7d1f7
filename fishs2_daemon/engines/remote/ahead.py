"""What has come before it was wanted."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Self

from fishs2_daemon.speech import Pcm


class ReadAhead:
    """Reads `source` on a task of its own, up to `most_bytes` ahead of whoever iterates over this.

    So an upstream is done with a phrase, and asked for the next one, while this one is still being heard. What `source`
    raises is raised behind its last block. Use as an async context manager; leaving it closes `source`.
    """

    def __init__(self, source: AsyncGenerator[Pcm, None], most_bytes: int) -> None:
        self._source = source
        self._most_bytes = most_bytes
        self._blocks: deque[Pcm] = deque()
        self._held_bytes = 0
        self._came = asyncio.Event()
        self._room = asyncio.Event()
        self._error: Exception | None = None
        self._ended = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._source.aclose()  # of a task that was cancelled before its first step

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Pcm:
        while not self._blocks:
            if self._error:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._came.clear()
            await self._came.wait()
        block = self._blocks.popleft()
        self._held_bytes -= len(block.samples)
        self._room.set()
        return block

    async def _read(self) -> None:
        try:
            async with aclosing(self._source) as blocks:
                async for block in blocks:
                    self._blocks.append(block)
                    self._held_bytes += len(block.samples)
                    self._came.set()
                    while self._held_bytes >= self._most_bytes:
                        self._room.clear()
                        await self._room.wait()
        except Exception as error:  # noqa: BLE001 - kept, and raised to whoever listens
            self._error = error
        finally:
            self._ended = True
            self._came.set()
