"""A text that is still arriving, as an iterator of phrases."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Self

from fishs2_daemon.errors import DeadlineExceeded, SynthesisError, TextTooLong
from fishs2_daemon.speech import Flush
from fishs2_daemon.text.phrase import Phrase
from fishs2_daemon.text.plan import DEFAULT_PLAN, TextPlan
from fishs2_daemon.text.reader import TextReader

#: A writer that is silent for this long has paused, as a language model does that calls a tool: what is finished so
#: far is spoken.
PAUSE_S = 0.3

#: A whole text is split in steps of this many characters, with the loop free in between.
_STEP = 4096

#: What a text's iterator may take to end when nobody wants the text any more.
_CLOSING_S = 1.0

#: Phrases that are made in a row, with the loop free after them.
_PHRASES_A_TURN = 64


class PhraseFeed:
    """Reads `text` on a task of its own and hands out phrases; `__anext__` survives cancellation.

    Raises what went wrong with the text, after the phrases before it: `TextTooLong`, `DeadlineExceeded`, or what the
    text's own iterator raised; `InvalidRequest` for malformed SSML, which is read when it is complete. Use as an async
    context manager; leaving it stops the reading.
    """

    def __init__(
        self, text: str | AsyncIterator[str], *, max_chars: int, timeout_s: float, plan: TextPlan = DEFAULT_PLAN
    ) -> None:
        self._text = text
        self._max_chars = max_chars
        self._timeout_s = timeout_s
        self._reader = TextReader(plan)
        self._phrases: asyncio.Queue[Phrase | None] = asyncio.Queue()
        self._error: Exception | None = None
        self._task: asyncio.Task[None] | None = None
        self._ended = False
        #: When a phrase was last taken, or the text ended (the loop's clock).
        self.moved_at = 0.0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def is_starved(self) -> bool:
        """Whether all phrases so far were taken and the text goes on: silence is the writer's, not the engine's."""
        return self._phrases.empty() and not self._ended

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Phrase:
        phrase = await self._phrases.get()
        if phrase is None:
            self._phrases.put_nowait(None)
            if self._error:
                raise self._error
            raise StopAsyncIteration
        self._move()
        return phrase

    def _move(self) -> None:
        self.moved_at = asyncio.get_running_loop().time()

    async def _read(self) -> None:
        try:
            if isinstance(self._text, str):
                await self._split_whole(self._text)
            else:
                await self._split_stream(self._text)
            await self._put(self._reader.finish())
        except Exception as error:  # noqa: BLE001 - kept, and raised to whoever reads the phrases
            self._error = error
        finally:
            self._ended = True
            self._move()
            self._phrases.put_nowait(None)

    async def _split_whole(self, text: str) -> None:
        for start in range(0, len(text), _STEP):
            await self._put(self._reader.feed(text[start : start + _STEP]))
            await asyncio.sleep(0)

    async def _split_stream(self, chunks: AsyncIterator[str]) -> None:
        length = 0
        while (chunk := await self._next_of(chunks)) is not None:
            length += len(chunk)
            if length > self._max_chars:
                raise TextTooLong(f"the text is longer than {self._max_chars} characters", param="input")
            await self._put(self._reader.feed(chunk))
            if isinstance(chunk, Flush):
                await self._put(self._reader.flush())

    async def _next_of(self, chunks: AsyncIterator[str]) -> str | None:
        reading = asyncio.ensure_future(anext(chunks, None))
        try:
            if not (await asyncio.wait([reading], timeout=PAUSE_S))[0]:
                await self._put(self._reader.pause())
                if not (await asyncio.wait([reading], timeout=self._timeout_s))[0]:
                    raise DeadlineExceeded(f"no text came for {self._timeout_s:.0f} s")
            if reading.cancelled():
                raise SynthesisError("the text was broken off")
            return reading.result()
        finally:
            if not reading.done():
                reading.cancel()
                await asyncio.wait([reading], timeout=_CLOSING_S)
                if reading.done() and not reading.cancelled():
                    reading.exception()  # nobody wants the text any more

    async def _put(self, phrases: Iterable[Phrase]) -> None:
        for number, phrase in enumerate(phrases, 1):
            self._phrases.put_nowait(phrase)
            if number % _PHRASES_A_TURN == 0:
                await asyncio.sleep(0)
