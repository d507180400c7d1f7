"""The one thread that calls libs2."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fishs2_daemon.errors import EngineError

_T = TypeVar("_T")


class NativeThread:
    """One call after the other. A pipeline is not safe for two at once, and its random numbers belong to a thread."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="s2cpp")

    async def run(self, work: Callable[[], _T]) -> _T:
        """Who is cancelled here stays until the call has returned: before that its pipeline is not free."""
        try:
            job = self._executor.submit(work)
        except RuntimeError:
            raise EngineError("libs2 is not loaded") from None
        done = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(done)
        finally:
            if not done.done() and not job.cancel():
                await asyncio.wait([done])
            if done.done() and not done.cancelled():
                done.exception()  # nobody may be left to look at it

    def end(self) -> None:
        """Does not wait for a call that still runs."""
        self._executor.shutdown(wait=False)
