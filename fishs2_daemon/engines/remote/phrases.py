"""Phrases that are there already, asked for in one go."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Self

from fishs2_daemon.text.phrase import Phrase

#: Phrases of one text arrive in a burst. The first request waits so long for the rest of it, unless the text ends.
_TOGETHER_S = 0.005

#: Characters that wait for their turn; beyond that the source is not read on.
_WAITING_CHARS = 64 * 1024


class JoinedPhrases:
    """`phrases` are read on a task of its own, as they come. Use as an async context manager.

    What is joined are the words; the pause that belongs behind a phrase ends a joined one. Speakers are told by S2's
    tags, `<|speaker:1|>`, where they change.
    """

    def __init__(self, phrases: AsyncIterator[Phrase]) -> None:
        self._phrases = phrases
        self._waiting: deque[Phrase] = deque()
        self._waiting_chars = 0
        self._came = asyncio.Event()
        self._room = asyncio.Event()
        self._error: Exception | None = None
        self._ended = asyncio.Event()
        self._has_begun = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def take(self, most_chars: int) -> Phrase | None:
        """What to ask for next: at least one phrase, and more of those that are there, within `most_chars`. None at the
        end of the text. Raises what went wrong with it, behind its last phrase."""
        while not self._waiting:
            if self._error:
                raise self._error
            if self._ended.is_set():
                return None
            self._came.clear()
            await self._came.wait()
        if not self._has_begun:
            self._has_begun = True
            with suppress(TimeoutError):
                async with asyncio.timeout(_TOGETHER_S):
                    await self._ended.wait()
        first = self._pop()
        text, pause_s, speaker = _tagged(first), first.pause_s, first.speaker
        while not pause_s and self._waiting and len(text) + len(self._waiting[0]) < most_chars:
            following = self._pop()
            text += " " + (str(following) if following.speaker == speaker else _tagged(following))
            pause_s, speaker = following.pause_s, following.speaker
        return Phrase(text, pause_s)

    def _pop(self) -> Phrase:
        phrase = self._waiting.popleft()
        self._waiting_chars -= len(phrase)
        self._room.set()
        return phrase

    async def _read(self) -> None:
        try:
            async for phrase in self._phrases:
                self._waiting.append(phrase)
                self._waiting_chars += len(phrase)
                self._came.set()
                while self._waiting_chars > _WAITING_CHARS:
                    self._room.clear()
                    await self._room.wait()
        except Exception as error:  # noqa: BLE001 - kept, and raised to whoever takes the phrases
            self._error = error
        finally:
            self._ended.set()
            self._came.set()


def _tagged(phrase: Phrase) -> str:
    return str(phrase) if phrase.speaker is None else f"<|speaker:{phrase.speaker}|>{phrase}"
