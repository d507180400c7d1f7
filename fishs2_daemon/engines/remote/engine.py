"""Other servers' speech behind the engine protocol.

Servers are asked for streamed WAV where they can: its head tells the rate that the model has, and nobody resamples.
Each is greeted first, which shows its rate and how it wants to be asked. The engine's rate is that of the first server
that answers, in the order of the setting; what another one sends at another rate is resampled here.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import astuple, replace
from typing import TYPE_CHECKING

from fishs2_daemon.audio.convert import PcmConverter
from fishs2_daemon.engines.base import EngineOptions, Progress, Utterance, pauses
from fishs2_daemon.engines.remote.ahead import ReadAhead
from fishs2_daemon.engines.remote.clips import ClipUrls
from fishs2_daemon.engines.remote.errors import reasons_in
from fishs2_daemon.engines.remote.phrases import JoinedPhrases
from fishs2_daemon.engines.remote.request import DEADLINES, DEFAULT_VOICE, Deadlines, Reference, SpeechAsked
from fishs2_daemon.errors import EngineError
from fishs2_daemon.speech import EngineInfo, Pcm, Voice

if TYPE_CHECKING:
    from fishs2_daemon.engines.remote.choice import Choice
    from fishs2_daemon.engines.remote.client import Client
    from fishs2_daemon.engines.remote.upstream import Upstream

_log = logging.getLogger(__name__)

#: Of one answer: three quarters of a minute at 44.1 kHz.
_READ_AHEAD_BYTES = 4 * 1024 * 1024

#: Of a text, that wait for their turn; beyond that its source is not read on.
_WAITING_CHARS = 64 * 1024

#: Of all voices together, as JSON; the wire to the daemon has room for a quarter more.
_VOICES_BYTES = 3 * 1024 * 1024

#: Where no server tells what a voice speaks.
_LANGUAGES = ("en",)

#: Servers that `EngineInfo.device` names.
_SHOWN = 4


class RemoteEngine:
    """`Engine` over the servers of `remote_urls`."""

    def __init__(self, options: EngineOptions, deadlines: Deadlines = DEADLINES) -> None:
        self._options = options
        self._deadlines = deadlines
        self._clips = ClipUrls()
        self._upstreams: list[Upstream] = []
        self._client: Client | None = None
        self._choice: Choice | None = None
        self._watching: list[asyncio.Task[None]] = []
        self._sample_rate = 0

    async def load(self, progress: Progress) -> EngineInfo:
        """Raises `EngineError` that names every server, and why it cannot be used, where none can."""
        urls = list(dict.fromkeys(url.rstrip("/") for url in self._options.remote_urls))
        if not urls:
            raise EngineError("FISHS2_REMOTE_URLS names no server; such as http://gpu.local:8020/v1")
        try:
            from fishs2_daemon.engines.remote.choice import Choice
            from fishs2_daemon.engines.remote.client import ApiKey, Client
            from fishs2_daemon.engines.remote.upstream import Upstream
        except ImportError as error:
            raise EngineError(f"{error.name} is missing: pip install 'fishs2-daemon[remote]'") from None
        progress("asking the servers", 0.0)
        key = ApiKey(self._options.remote_api_key_file)
        await asyncio.to_thread(key.read)
        speaks_tls = any(url.startswith("https:") for url in urls)
        instance = self._options.instance
        self._client = client = Client(key, self._deadlines, instance=instance, speaks_tls=speaks_tls)
        model = self._options.remote_model
        self._upstreams = [Upstream(url, model, client, self._deadlines) for url in urls]
        self._choice = Choice(self._upstreams, self._deadlines.patience_s)
        try:
            await self._meet(progress)
        except BaseException:
            await self.close()
            raise
        return self._info()

    def info(self) -> EngineInfo:
        """Of what the servers said last; they are asked anew, and the key is read again."""
        info = self._info()
        for upstream in self._upstreams:
            upstream.list_soon()
        return info

    async def speak(self, utterance: Utterance) -> AsyncGenerator[Pcm, None]:
        self._info()
        references = tuple([await self._clips.reference(clip) for clip in utterance.clips])
        # The server is done with a phrase, and asked for the next one, while this one is still being heard.
        async with (
            aclosing(self._spoken(utterance, references)) as spoken,
            ReadAhead(spoken, _READ_AHEAD_BYTES, lambda block: len(block.samples)) as blocks,
        ):
            async for block in blocks:
                yield block

    async def close(self) -> None:
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        self._watching.clear()
        self._choice = None
        if self._client is not None:
            await self._client.close()

    async def _meet(self, progress: Progress) -> None:
        """Until every server was looked at, or one is there and the others take too long."""
        met = [asyncio.Event() for _ in self._upstreams]
        pairs = zip(self._upstreams, met, strict=True)
        self._watching = [asyncio.create_task(self._watch(upstream, looked)) for upstream, looked in pairs]
        now = asyncio.get_running_loop().time
        ends = now() + self._deadlines.meeting_s
        waiting = [asyncio.create_task(done.wait()) for done in met]
        left = set(waiting)
        try:
            while left and now() < ends:
                await asyncio.wait(left, timeout=ends - now(), return_when=asyncio.FIRST_COMPLETED)
                left = {task for task in left if not task.done()}
                progress("asking the servers", 1 - len(left) / len(waiting))
                if any(each.is_ready for each in self._upstreams):
                    ends = min(ends, now() + self._deadlines.settling_s)
        finally:
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        ready = [each for each in self._upstreams if each.is_ready]
        if not ready:
            reasons = reasons_in(each.trouble for each in self._upstreams)
            raise EngineError(f"FISHS2_REMOTE_URLS: no server can be used: {reasons}")
        self._sample_rate = ready[0].sample_rate

    async def _watch(self, upstream: "Upstream", looked: asyncio.Event) -> None:
        """Ends with the engine."""
        while True:
            try:
                await upstream.look()
            except Exception:  # noqa: BLE001 - an edge: whatever a server brings about, it is looked at again
                _log.exception("looking at %s", upstream.url)
            finally:
                looked.set()
            await upstream.rest()

    def _info(self) -> EngineInfo:
        if self._choice is None:
            raise EngineError("no server was asked yet")
        urls = [each.url for each in self._upstreams]
        more = f" and {len(urls) - _SHOWN} more" if len(urls) > _SHOWN else ""
        return EngineInfo(
            "remote",
            self._sample_rate,
            self._options.remote_slots * len(urls),
            DEFAULT_VOICE,
            _union(self._upstreams),
            clones=True,
            device=", ".join(urls[:_SHOWN]) + more,
        )

    async def _spoken(self, utterance: Utterance, references: tuple[Reference, ...]) -> AsyncGenerator[Pcm, None]:
        """The whole text, by one server: request after request."""
        choice = self._choice
        if choice is None:
            raise EngineError("the engine is being closed")
        upstream: Upstream | None = None
        voice = DEFAULT_VOICE if references else utterance.voice
        async with ReadAhead(utterance.phrases, _WAITING_CHARS, len) as waiting:
            phrases = JoinedPhrases(waiting)
            while (phrase := await phrases.take((upstream or choice).most_chars)) is not None:
                asked = SpeechAsked(str(phrase), voice, references, utterance.sampling)
                begun = await choice.begin(asked, only=upstream)
                upstream = begun.upstream
                async with aclosing(begun.rest) as rest, aclosing(self._at_our_rate(begun.first, rest)) as blocks:
                    async for block in blocks:
                        yield block
                for silence in pauses(phrase, self._sample_rate):
                    yield silence

    async def _at_our_rate(self, first: Pcm, rest: AsyncIterator[Pcm]) -> AsyncGenerator[Pcm, None]:
        rate = self._sample_rate
        if first.sample_rate == rate:
            yield first
            async for block in rest:
                yield block
            return
        # The first converter imports PyAV, for which the other answers should not wait.
        converter = await asyncio.to_thread(PcmConverter, first.sample_rate, rate)
        if samples := converter.feed(first.samples):
            yield Pcm(samples, rate)
        async for block in rest:
            if samples := converter.feed(block.samples):
                yield Pcm(samples, rate)
        if samples := converter.flush():
            yield Pcm(samples, rate)


def _union(upstreams: "Sequence[Upstream]") -> tuple[Voice, ...]:
    """Every voice once, as the first server that has it tells of it. One of no known language is offered for all that
    are known."""
    voices: dict[str, Voice] = {}
    for voice in (each for upstream in upstreams for each in upstream.voices):
        voices.setdefault(voice.id, voice)
    known = tuple(dict.fromkeys(tag for voice in voices.values() for tag in voice.languages)) or _LANGUAGES
    listed: list[Voice] = []
    left_bytes = _VOICES_BYTES
    for each in voices.values() or (Voice(DEFAULT_VOICE, "Default", ()),):
        voice = replace(each, languages=each.languages or known)
        left_bytes -= len(json.dumps(astuple(voice)))
        if left_bytes < 0:
            _log.warning("%d voices of the servers are not listed: there are too many", len(voices) - len(listed))
            break
        listed.append(voice)
    return tuple(listed)
