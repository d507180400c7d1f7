"""Which upstream speaks: of those that are well, the one with the least to do.

text ──▶ least outstanding ──▶ first audio ──▶ the listener        no way back from here
               ▲                   │
               └──another one──────┘ gone, broken, silent
               └──the same, later──┘ busy
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from math import ceil

from fishs2_daemon.engines.remote.errors import UpstreamBusy, UpstreamFailed, reasons_in
from fishs2_daemon.engines.remote.request import SpeechAsked
from fishs2_daemon.engines.remote.upstream import Upstream
from fishs2_daemon.errors import Busy, EngineError
from fishs2_daemon.speech import Pcm

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Begun:
    """An answer whose first block has come; `rest` are the others, to be closed."""

    upstream: Upstream
    first: Pcm
    rest: AsyncGenerator[Pcm, None]


class Choice:
    """Over `upstreams`; a text waits for `patience_s` where all are busy."""

    def __init__(self, upstreams: Sequence[Upstream], patience_s: float) -> None:
        self._upstreams = upstreams
        self._patience_s = patience_s
        self._now = asyncio.get_running_loop().time

    @property
    def most_chars(self) -> int:
        """Of a request that any of those that are well would take."""
        return min((each.most_chars for each in self._upstreams if each.is_ready), default=0)

    async def begin(self, asked: SpeechAsked, only: Upstream | None = None) -> Begun:
        """Raises `EngineError` that tells of every server that was tried, or of `only`, the one that the text has begun
        with and that nobody can stand in for; `Busy` where some would speak a text that has not begun, but later."""
        ends = self._now() + self._patience_s
        failed: dict[Upstream, str] = {}
        is_first = only is not None
        while True:
            upstreams = (only,) if only else self._able(asked)
            left = [each for each in upstreams if each not in failed and (each.is_ready or each is only)]
            if not left:
                raise EngineError(_why(failed, upstreams))
            now = self._now()
            # What is busy for others may still take the next phrase of a text that it has begun.
            free = [each for each in left if each.busy_until <= now or is_first]
            is_first = False
            if not free:
                soonest = min(left, key=lambda each: each.busy_until)
                if soonest.busy_until > ends:
                    if only:
                        raise EngineError(_why(failed, left))
                    raise Busy(_why(failed, left), retry_after_s=ceil(soonest.busy_until - now))
                await asyncio.sleep(soonest.busy_until - now)
                continue
            upstream = min(free, key=lambda each: (each.outstanding, each.failures, each.last_asked))
            blocks = upstream.speak(asked)
            try:
                return Begun(upstream, await anext(blocks), blocks)
            except UpstreamBusy as busy:
                upstream.has_sent_away(busy)
                _log.info("%s; it is asked again in %.0f s", busy, busy.retry_after_s)
            except UpstreamFailed as failure:
                failed[upstream] = str(failure)
                _log.warning("%s", failure)

    def _able(self, asked: SpeechAsked) -> Sequence[Upstream]:
        named = [each for each in self._upstreams if each.has_voice(asked.voice)]
        if not named:
            raise EngineError(f"no server has the voice {asked.voice!r} any more")
        count = len(asked.references)
        able = [each for each in named if each.most_references is None or each.most_references >= count]
        if not able:
            raise EngineError(f"no server is known to speak like {count} recordings at a time")
        return able


def _why(failed: dict[Upstream, str], upstreams: Sequence[Upstream]) -> str:
    return "no server speaks: " + reasons_in(failed.get(each) or each.trouble for each in upstreams)
