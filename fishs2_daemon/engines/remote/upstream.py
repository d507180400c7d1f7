"""One server: how it is, what it has to do, and its speech."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress

from fishs2_daemon.engines.remote.body import Body
from fishs2_daemon.engines.remote.breaker import Breaker, State
from fishs2_daemon.engines.remote.client import NOT_THERE, Answer, Client
from fishs2_daemon.engines.remote.errors import (
    BrokenBody,
    UpstreamBusy,
    UpstreamError,
    UpstreamFailed,
    UpstreamLacks,
    UpstreamRefused,
)
from fishs2_daemon.engines.remote.listing import owner_of, voices_of
from fishs2_daemon.engines.remote.request import DEFAULT_VOICE, Deadlines, Manner, SpeechAsked, manners_of
from fishs2_daemon.engines.remote.sse import body_of
from fishs2_daemon.speech import Pcm, Voice

_log = logging.getLogger(__name__)

#: Said to every server, to learn how it wants to be asked and at what rate it speaks, and whether it speaks again
#: after a failure. Nobody hears it.
_GREETING = SpeechAsked("Hello.")

#: An answer that goes on for longer, in audio, is no speech.
_LONGEST_ANSWER_S = 3600.0

#: A server whose queue is long is spared for this long.
_QUEUE_S = 1.0

#: A list of voices, and one of models.
_LISTING_S = 5.0

_OK, _FORBIDDEN = 200, (401, 403)


class Upstream:
    """The server at `url`, which ends without a slash. `look` at it and let it `rest` in turns; while it `is_ready`, it
    may `speak`."""

    def __init__(self, url: str, model: str, client: Client, deadlines: Deadlines) -> None:
        self.url = url
        self.outstanding = 0
        self.voices: tuple[Voice, ...] = ()
        self.sample_rate = 0
        self.trouble = "it was not asked yet"
        self.busy_until = 0.0
        self.last_asked = 0.0
        self._wanted = asyncio.Event()
        self._model = model
        self._client = client
        self._deadlines = deadlines
        self._now = asyncio.get_running_loop().time
        self._breaker = Breaker(self._now)
        self._manner: Manner | None = None
        self._base = ""
        self._listed_at = 0.0
        self._heard_at = 0.0
        self._is_doubtful = False

    @property
    def is_ready(self) -> bool:
        """Whether it may be asked to speak."""
        return self._manner is not None and self._breaker.state is State.CLOSED

    @property
    def failures(self) -> int:
        """In a row."""
        return self._breaker.failures

    @property
    def most_chars(self) -> int:
        """Of one request."""
        return self._manner.most_chars if self._manner else 0

    @property
    def most_references(self) -> int | None:
        """Of one request; None while that is not known."""
        return self._manner.most_references if self._manner else None

    def has_voice(self, voice: str) -> bool:
        return voice == DEFAULT_VOICE or any(each.id == voice for each in self.voices)

    def list_soon(self) -> None:
        """The next `look`, which is at once, asks for the voices."""
        self._listed_at = 0.0
        self._wanted.set()

    def has_sent_away(self, busy: UpstreamBusy) -> None:
        """It sent a text away, and so it is well. It is to be left alone for a while."""
        self.trouble = str(busy)
        self.busy_until = self._now() + busy.retry_after_s
        self._breaker.spoke()

    async def look(self) -> None:
        """Ask how it is, and let it speak where that is in doubt. What is wrong is noted, and the breaker told."""
        try:
            await self._check_health()
            self._breaker.answered()
            if self._manner is None:
                await self._meet()
            elif (self.failures or self._is_doubtful) and self._breaker.state is not State.OPEN:
                await self._greet(self._base, self._manner, self._deadlines.first_audio_s)
            if self._now() - self._listed_at > self._deadlines.voices_every_s or not self._listed_at:
                await self._list_voices()
            if self._breaker.state is State.CLOSED:
                self.trouble = ""
        except UpstreamError as error:
            if self.trouble != str(error):
                _log.warning("%s", error)
            self.trouble = str(error)
            if isinstance(error, UpstreamBusy):
                self.has_sent_away(error)
            else:
                speaks_no_more = self._manner is None or isinstance(error, UpstreamRefused)
                self._breaker.failed(is_gone=speaks_no_more or getattr(error, "is_gone", False))

    async def rest(self) -> None:
        """Until it is time to look at it again, or somebody wants to know of its voices, and maybe changed the key."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._breaker.pause_left_s or self._deadlines.health_every_s):
                await self._wanted.wait()
                self._wanted.clear()
                await self._client.read_key_again()

    async def speak(self, asked: SpeechAsked) -> AsyncGenerator[Pcm, None]:
        """At least one block, all at one rate. Raises `UpstreamError`. Closing it ends the connection."""
        if self._manner is None:
            raise UpstreamFailed(f"{self.url}: {self.trouble}")
        self.outstanding += 1
        self.last_asked = self._now()
        deadline_s = self._deadlines.first_audio_s
        try:
            async with aclosing(self._answer(self._base, self._manner, asked, deadline_s)) as blocks:
                async for block in blocks:
                    self._heard_at = self._now()
                    yield block
            self._breaker.spoke()
        except UpstreamLacks as error:
            # The voice may be gone, or the model: the greeting tells.
            self._is_doubtful = True
            self.list_soon()
            raise UpstreamFailed(str(error)) from None
        except UpstreamFailed as error:
            self.trouble = str(error)
            self._breaker.failed(is_gone=error.is_gone)
            raise
        finally:
            self.outstanding -= 1

    async def _check_health(self) -> None:
        """A server that does not know `/health` lists its models."""
        root = self.url.removesuffix("/v1")
        try:
            async with asyncio.timeout(self._deadlines.health_s):
                status = await self._client.status(f"{root}/health")
                if status in NOT_THERE:
                    status = await self._client.status(f"{root}/v1/models")
        except TimeoutError:
            raise UpstreamFailed(f"{self.url}: no answer within {self._deadlines.health_s:g} s") from None
        if not _OK <= status < 300 and status not in _FORBIDDEN and status not in NOT_THERE:
            raise UpstreamFailed(f"{self.url}: it is not well ({status})")

    async def _list_voices(self) -> None:
        """As they are now; where it does not tell, as they were."""
        with suppress(UpstreamError, TimeoutError):
            async with asyncio.timeout(_LISTING_S):
                listing = await self._client.listing(f"{self._base}/audio/voices")
            if listing is not None:
                self.voices = voices_of(listing)
        self._listed_at = self._now()

    async def _meet(self) -> None:
        """Learn where and how it is asked, by asking it to speak."""
        bases = [self.url] if self.url.endswith("/v1") else [f"{self.url}/v1", self.url]
        refusals: list[UpstreamRefused] = []
        for base in bases:
            for manner in await self._manners(base):
                try:
                    await self._greet(base, manner, self._deadlines.meeting_s)
                except UpstreamRefused as refusal:
                    refusals.append(refusal)
                    continue
                self._base, self._manner = base, manner
                _log.info("%s speaks: %s at %d Hz", self.url, manner.response_format, self.sample_rate)
                return
        raise refusals[0]

    async def _greet(self, base: str, manner: Manner, deadline_s: float) -> None:
        async with aclosing(self._answer(base, manner, _GREETING, deadline_s)) as blocks:
            self.sample_rate = (await anext(blocks)).sample_rate
        self._is_doubtful = False
        self._breaker.spoke()

    async def _manners(self, base: str) -> Sequence[Manner]:
        try:
            async with asyncio.timeout(_LISTING_S):
                return manners_of(owner_of(await self._client.listing(f"{base}/models")))
        except TimeoutError:
            return manners_of("")

    async def _answer(
        self, base: str, manner: Manner, asked: SpeechAsked, first_audio_s: float
    ) -> AsyncGenerator[Pcm, None]:
        if len(asked.references) > manner.most_references:
            raise UpstreamFailed(f"{self.url}: it is not known to take {len(asked.references)} recordings")
        began = self._now()
        ends = began + first_audio_s
        try:
            async with asyncio.timeout_at(ends):
                answer = await self._client.ask(f"{base}/audio/speech", asked.body(self._model, manner))
        except TimeoutError:
            raise self._silent(began, first_audio_s) from None
        try:
            body = body_of(answer.headers, manner.response_format)
            if asked.references and answer.headers.get("x-fishs2-voice", "").endswith("stand-in=1"):
                raise UpstreamLacks(f"{self.url}: it does not clone, and would speak in a voice of its own")
            spoken_bytes = 0
            while True:
                try:
                    async with asyncio.timeout_at(ends):
                        samples = await _next(answer, body)
                except TimeoutError:
                    if not spoken_bytes:
                        raise self._silent(began, first_audio_s) from None
                    raise UpstreamFailed(f"{self.url}: it fell silent for {self._deadlines.gap_s:g} s") from None
                if not samples:
                    break
                spoken_bytes += len(samples)
                if spoken_bytes > 2 * body.sample_rate * _LONGEST_ANSWER_S:
                    raise BrokenBody(f"it went on for more than {_LONGEST_ANSWER_S:.0f} s")
                yield Pcm(samples, body.sample_rate)
                ends = self._now() + self._deadlines.gap_s
            if not spoken_bytes:
                raise BrokenBody("it ended without a sound")
        except BrokenBody as error:
            raise UpstreamFailed(f"{self.url}: its answer is broken: {error}") from None
        finally:
            await answer.close()

    def _silent(self, began: float, waited_s: float) -> UpstreamError:
        """What speaks other texts meanwhile is not broken: this one stands in its queue."""
        text = f"{self.url}: no audio within {waited_s:g} s"
        if self._heard_at > began:
            return UpstreamBusy(f"{text}, while it speaks others", retry_after_s=_QUEUE_S)
        return UpstreamFailed(text)


async def _next(answer: Answer, body: Body) -> bytes:
    """The next samples; empty at the end."""
    while not body.is_over:
        data = await answer.read()
        if not data:
            body.end()
            return b""
        if samples := body.feed(data):
            return samples
    return b""
