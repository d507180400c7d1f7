"""Phrases that are there already, asked for in one go."""

import asyncio
from contextlib import suppress

from fishs2_daemon.engines.remote.ahead import ReadAhead
from fishs2_daemon.text.phrase import Phrase

#: Phrases of one text arrive in a burst. The first request waits so long for the rest of it, unless the text ends.
_TOGETHER_S = 0.005


class JoinedPhrases:
    """What is joined are the words; the pause that belongs behind a phrase ends a joined one. Speakers are told by S2's
    tags, `<|speaker:1|>`, where they change.
    """

    def __init__(self, phrases: ReadAhead[Phrase]) -> None:
        self._phrases = phrases
        self._has_begun = False

    async def take(self, most_chars: int) -> Phrase | None:
        """What to ask for next: at least one phrase, and more of those that are there, within `most_chars`. None at the
        end of the text. Raises what went wrong with it, behind its last phrase."""
        try:
            first = await anext(self._phrases)
        except StopAsyncIteration:
            return None
        if not self._has_begun:
            self._has_begun = True
            with suppress(TimeoutError):
                async with asyncio.timeout(_TOGETHER_S):
                    await self._phrases.ended.wait()
        text, pause_s, speaker = _tagged(first), first.pause_s, first.speaker
        while not pause_s and (waiting := self._phrases.next) is not None and len(text) + len(waiting) < most_chars:
            following = self._phrases.take()
            text += " " + (str(following) if following.speaker == speaker else _tagged(following))
            pause_s, speaker = following.pause_s, following.speaker
        return Phrase(text, pause_s)


def _tagged(phrase: Phrase) -> str:
    return str(phrase) if phrase.speaker is None else f"<|speaker:{phrase.speaker}|>{phrase}"
