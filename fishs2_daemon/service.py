"""SpeechService: the one thing every door calls."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, nullcontext

from fishs2_daemon.admission import Admission
from fishs2_daemon.admitted import AdmittedPhrases
from fishs2_daemon.catalogue import Casting, VoiceCatalogue
from fishs2_daemon.engines.base import Utterance
from fishs2_daemon.errors import (
    Busy,
    DeadlineExceeded,
    Fishs2Error,
    ShuttingDown,
    SynthesisError,
    TextTooLong,
)
from fishs2_daemon.metrics import Metrics
from fishs2_daemon.settings import Settings
from fishs2_daemon.speech import EngineInfo, EngineState, Pcm, Priority, SpeechRequest, Voice
from fishs2_daemon.text.feed import PhraseFeed
from fishs2_daemon.text.phrase import Phrase
from fishs2_daemon.text.plans import TextPlans
from fishs2_daemon.worker.pool import WorkerPool
from fishs2_daemon.worker.supervisor import Supervisor

_log = logging.getLogger(__name__)

#: A text of which everything was said that is there, and which does not go on for so long, lends its slot to others.
_LEND_S = 5.0

#: What a text without anything to say sounds like: players fail on an answer without samples.
SILENCE_S = 0.1

#: Longest block handed to a door, and the longest first one: a player starts with what it gets first.
_BLOCK_S = 0.1
_FIRST_BLOCK_S = 0.04

#: How soon a new worker's voices are warmed, at the latest.
_LOOK_S = 5.0


class SpeechService:
    """Validates, resolves the voice, splits the text, queues, bounds and cancels."""

    def __init__(self, settings: Settings, workers: WorkerPool, catalogue: VoiceCatalogue, metrics: Metrics) -> None:
        self.settings = settings
        self.catalogue = catalogue
        self.metrics = metrics
        self._workers = workers
        self._admission = Admission(lambda: workers.slots)
        self._plans = TextPlans(settings)
        self._closing = False
        self._warmed: set[tuple[int, str]] = set()
        metrics.waiting.set_function(lambda: self.waiting)
        metrics.running.set_function(lambda: self.running)

    @property
    def state(self) -> EngineState:
        return self._workers.state

    @property
    def detail(self) -> str:
        return self._workers.detail

    @property
    def engine(self) -> EngineInfo | None:
        """What the engine said of itself when it was last ready."""
        return self._workers.engine

    @property
    def instance(self) -> str:
        """What this daemon is told from others by."""
        return self._workers.instance

    @property
    def running(self) -> int:
        return self._admission.running

    @property
    def waiting(self) -> int:
        return self._admission.waiting

    def voices(self) -> tuple[Voice, ...]:
        """As of the last `refresh`, or request."""
        return self.catalogue.voices(self.engine)

    async def refresh(self) -> None:
        """Look for stored voices that came or went."""
        await self.catalogue.refresh()

    def default_voice(self, engine: EngineInfo) -> str | None:
        """Id of the voice of requests that name none; None where the one that is set does not exist."""
        return self.catalogue.default(engine)

    def close(self) -> None:
        """Refuse what comes from now on; what runs may finish."""
        self._closing = True

    async def keep_warm(self) -> None:
        """Make the voices that are set ready on every worker that comes; runs until it is cancelled."""
        while True:
            await self.warm(self._workers.members)
            await self._workers.wait_for_change(_LOOK_S)

    async def keep_admitting(self) -> None:
        """Let in who waits where workers come that speak more texts; runs until it is cancelled."""
        while True:
            await self._workers.wait_for_change(_LOOK_S)
            self._admission.admit()

    async def warm(self, workers: Sequence[Supervisor]) -> None:
        """Make the voices that are set ready on those of `workers` that are, where that was not done yet."""
        for worker in workers:
            for voice in self.settings.warm_voices:
                engine, pid = worker.engine, worker.pid
                if pid is not None and engine and engine.clones and (pid, voice) not in self._warmed:
                    self._warmed.add((pid, voice))
                    await self._warm(voice, worker, engine)

    async def speak(
        self, request: SpeechRequest, on_cast: Callable[[Casting], None] = lambda casting: None
    ) -> AsyncGenerator[Pcm, None]:
        """The speech as one ordered stream of short blocks at one rate. Closing it cancels the work. Before the first
        block `on_cast` is told who speaks; once more where that changes.

        Raises `RequestError`, `Unavailable` or `SynthesisError`. A text with nothing to say gives 100 ms of silence.
        """
        try:
            async with aclosing(self._speak(request, on_cast)) as blocks:
                async for block in blocks:
                    yield block
        except SynthesisError as error:
            self.metrics.requests.labels("failed").inc()
            _log.warning("speech failed: %s", error)
            raise
        except Fishs2Error as error:
            self.metrics.refusals.labels(error.code).inc()
            raise
        except (asyncio.CancelledError, GeneratorExit):
            self.metrics.requests.labels("cancelled").inc()
            raise
        self.metrics.requests.labels("spoken").inc()

    async def _speak(self, request: SpeechRequest, on_cast: Callable[[Casting], None]) -> AsyncGenerator[Pcm, None]:
        settings = self.settings
        if self._closing:
            raise ShuttingDown("the daemon is shutting down")
        self._check(request)
        engine = await self._workers.ready(settings.queue_timeout_s)
        casting = await self.catalogue.cast(request, engine)
        on_cast(casting)
        plan = await self._plans.plan(ssml=request.ssml, clean=request.clean, style=request.style or casting.style)
        feed = PhraseFeed(request.text, max_chars=settings.max_text_chars, timeout_s=settings.text_timeout_s, plan=plan)
        async with feed:
            first = await anext(feed, None)
            if first is None:
                yield _silence(engine.sample_rate)
                return
            clock = _Clock(self.metrics)
            async with self._admission.slot(request.priority, settings.max_queue, settings.queue_timeout_s) as slot:
                clock.admitted()
                now = await self._workers.ready(settings.queue_timeout_s)
                if now.name != casting.engine:  # another engine took over while this waited
                    casting = await self.catalogue.cast(request, now)
                    on_cast(casting)
                phrases = AdmittedPhrases(first, feed, slot)
                utterance = Utterance(
                    casting.voice,
                    phrases,
                    casting.clips,
                    request.sampling.over(casting.sampling),
                    request.priority,
                )
                async with (
                    aclosing(self._workers.speak(utterance)) as speech,
                    aclosing(self._bounded(speech, phrases, clock)) as blocks,
                ):
                    async for block in blocks:
                        yield block
                clock.ended(casting.name)
            if not clock.heard_audio:
                yield _silence(engine.sample_rate)

    async def _warm(self, voice: str, worker: Supervisor, engine: EngineInfo) -> None:
        settings = self.settings
        try:
            casting = await self.catalogue.cast(SpeechRequest("", voice=voice), engine)
            # A worker that is yet to take over speaks nothing else.
            slot = self._admission.slot(Priority.READING, settings.max_queue, settings.queue_timeout_s)
            async with slot if worker in self._workers.members else nullcontext():
                utterance = Utterance(casting.voice, _nothing(), casting.clips, priority=Priority.READING)
                async with (
                    asyncio.timeout(settings.worker_start_timeout_s),
                    aclosing(worker.speak(utterance)) as speech,
                ):
                    async for _ in speech:
                        pass
            _log.info("the voice %s is warm", casting.name)
        except (Fishs2Error, TimeoutError, OSError) as error:
            if isinstance(error, Busy) and worker.pid is not None:
                self._warmed.discard((worker.pid, voice))  # it is tried again
            _log.warning("FISHS2_WARM_VOICES: %s: %s", voice, error)

    def _check(self, request: SpeechRequest) -> None:
        if isinstance(request.text, str) and len(request.text) > self.settings.max_text_chars:
            raise TextTooLong(
                f"the text has {len(request.text)} characters; allowed: {self.settings.max_text_chars}", param="input"
            )

    async def _bounded(
        self, blocks: AsyncGenerator[Pcm, None], phrases: AdmittedPhrases, clock: "_Clock"
    ) -> AsyncGenerator[Pcm, None]:
        """The blocks cut small, under the deadlines. Time that the listener takes counts for the total alone."""
        settings = self.settings
        total_ends = asyncio.get_running_loop().time() + settings.total_timeout_s
        while True:
            with clock:
                block = await self._next(blocks, phrases, clock, total_ends)
            if block is None:
                return
            for piece in _pieces(block, first=not clock.heard_audio):
                clock.heard(piece)
                yield piece

    async def _next(
        self, blocks: AsyncGenerator[Pcm, None], phrases: AdmittedPhrases, clock: "_Clock", total_ends: float
    ) -> Pcm | None:
        """The next block. While the engine has spoken all of a text that goes on, its silence is not its own, and soon
        others may have its slot: a text may never end, as of a language model that failed."""
        settings = self.settings
        limit_s = settings.stall_timeout_s if clock.heard_audio else settings.first_audio_timeout_s
        now = asyncio.get_running_loop().time
        reading = asyncio.ensure_future(anext(blocks, None))
        began = now()
        try:
            while not reading.done():
                quiet_s = now() - max(began, phrases.moved_at)
                if now() >= total_ends:
                    raise DeadlineExceeded(f"the answer took longer than {settings.total_timeout_s:.0f} s")
                if phrases.is_starved:
                    left_s = limit_s
                    # Before its first sound it may not have spoken what it has.
                    if quiet_s >= _LEND_S and clock.heard_audio:
                        phrases.slot.lend()
                elif (left_s := limit_s - quiet_s) <= 0:
                    raise DeadlineExceeded(f"no audio came for {limit_s:.0f} s")
                await asyncio.wait([reading], timeout=min(left_s, _LEND_S, total_ends - now()))
            return reading.result()
        finally:
            if not reading.done():
                reading.cancel()
                await asyncio.wait([reading])


class _Clock:
    """Measures one answer: the wait for a slot, the time to the first audio, and the share of time spent waiting for
    the engine (as a context manager)."""

    def __init__(self, metrics: Metrics) -> None:
        self.heard_audio = False
        self._metrics = metrics
        self._now = asyncio.get_running_loop().time
        self._began = self._since = self._now()
        self._first_audio_s = self._waited_s = self._audio_s = 0.0

    def admitted(self) -> None:
        self._metrics.queue_wait.observe(self._now() - self._began)

    def heard(self, block: Pcm) -> None:
        if not self.heard_audio:
            self.heard_audio = True
            self._first_audio_s = self._now() - self._began
            self._metrics.ttfa.observe(self._first_audio_s)
        self._audio_s += block.duration_s
        self._metrics.audio.inc(block.duration_s)

    def __enter__(self) -> None:
        self._since = self._now()

    def __exit__(self, *_: object) -> None:
        self._waited_s += self._now() - self._since

    def ended(self, voice: str) -> None:
        if self._audio_s:
            self._metrics.rtf.observe(self._waited_s / self._audio_s)
            _log.info(
                "%.1f s of speech by %s, first audio after %.0f ms", self._audio_s, voice, self._first_audio_s * 1000
            )


async def _nothing() -> AsyncGenerator[Phrase, None]:
    return
    yield


def _silence(sample_rate: int) -> Pcm:
    return Pcm(bytes(2 * round(SILENCE_S * sample_rate)), sample_rate)


def _pieces(block: Pcm, *, first: bool) -> Iterator[Pcm]:
    start = 0
    while start < len(block.samples):
        longest_s = _FIRST_BLOCK_S if first and start == 0 else _BLOCK_S
        size = 2 * int(longest_s * block.sample_rate)
        yield Pcm(block.samples[start : start + size], block.sample_rate)
        start += size
