"""What has come before it was wanted."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Generic, Self, TypeVar

_T = TypeVar("_T")


class ReadAhead(Generic[_T]):
    """Reads `source` on a task of its own, ahead of whoever iterates over this, until the `size` of what waits adds up
    to `most`.

    What `source` raises is raised behind its last item. Use as an async context manager, within which `source` is
    nobody else's.
    """

    def __init__(self, source: AsyncIterator[_T], most: int, size: Callable[[_T], int]) -> None:
        self._source = source
        self._most = most
        self._size = size
        self._waiting: deque[_T] = deque()
        self._held = 0
        self._came = asyncio.Event()
        self._room = asyncio.Event()
        self._error: Exception | None = None
        self._task: asyncio.Task[None] | None = None
        #: Nothing more comes; what has come may still wait.
        self.ended = asyncio.Event()

    @property
    def next(self) -> _T | None:
        """What is taken next, where it has come."""
        return self._waiting[0] if self._waiting else None

    def take(self) -> _T:
        """`next`, which is there."""
        item = self._waiting.popleft()
        self._held -= self._size(item)
        self._room.set()
        return item

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _T:
        while not self._waiting:
            if self._error:
                raise self._error
            if self.ended.is_set():
                raise StopAsyncIteration
            self._came.clear()
            await self._came.wait()
        return self.take()

    async def _read(self) -> None:
        try:
            async for item in self._source:
                self._waiting.append(item)
                self._held += self._size(item)
                self._came.set()
                while self._held >= self._most:
                    self._room.clear()
                    await self._room.wait()
        except Exception as error:  # noqa: BLE001 - kept, and raised to whoever listens
            self._error = error
        finally:
            self.ended.set()
            self._came.set()
