"""One prompt on its way to sound: made on the event loop, worked on by the engine's threads."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Self

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.prompt import Columns
from fishs2_daemon.engines.s2.sampling import Sampling
from fishs2_daemon.speech import Pcm

#: Frames that may be made beyond what the listener has taken: ten seconds of sound. Its slot rests until it takes more.
MOST_AHEAD = 215


class Answer:
    """`columns` is the whole prompt, of which a slot holds the first `fed` already. The first `prefix` of them begin
    other prompts, too. Without `sampling` the prompt is read, and nothing is said.

    The threads post blocks and then the end; after it `codes` are what was said, and `fed` is how much of that, behind
    the prompt, the slot holds.
    """

    def __init__(self, columns: Columns, *, fed: int, prefix: int, sampling: Sampling | None) -> None:
        self.columns = columns
        self.prefix = prefix
        self.sampling = sampling
        self.frames: list[npt.NDArray[np.int32]] = []  # [K] each
        #: Frames that count, where not all of them do; no more are made then.
        self.kept: int | None = None
        #: Told of `keep`, on the thread that calls that.
        self.on_keep: Callable[[], None] = _ignore
        self._fed = fed
        self._was_cut = False
        self._heard = 0
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[tuple[Pcm, int] | Exception | None] = asyncio.Queue()

    @property
    def codes(self) -> npt.NDArray[np.int32]:
        """Of the frames that count, `[K, n]`."""
        nothing = np.zeros((self.columns.shape[0] - 1, 0), np.int32)
        return np.stack(self.frames[: self.kept], axis=1) if self.frames[: self.kept] else nothing

    @property
    def fed(self) -> int:
        """Columns that the slot holds, of the prompt and then of the frames that count."""
        return self._fed if self.kept is None else min(self._fed, self.columns.shape[1] + self.kept)

    @property
    def was_cut(self) -> bool:
        """Whether it did not end by itself."""
        return self._was_cut or self.kept is not None

    def keep(self, frames: int) -> None:
        """Only the first `frames` count, of those that were made and those that may be on their way."""
        self.kept = frames
        self.on_keep()

    def rest(self, fed: int, *, was_cut: bool = False) -> None:
        """No more frames will be made, and the slot holds so many columns."""
        self._fed, self._was_cut = fed, was_cut

    @property
    def is_ahead(self) -> bool:
        return len(self.frames) - self._heard > MOST_AHEAD

    def post(self, block: Pcm, frames: int) -> None:
        """From any thread."""
        self._post((block, frames))

    def post_end(self, error: Exception | None = None) -> None:
        """From any thread; what comes after it is not heard."""
        self._post(error)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Pcm:
        """On the loop. Raises what ended the answer early."""
        item = await self._inbox.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, Exception):
            raise item
        block, frames = item
        self._heard += frames
        return block

    def _post(self, item: tuple[Pcm, int] | Exception | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, item)


def _ignore() -> None:
    pass
