"""S2 Pro behind the engine protocol: a phrase becomes a prompt, frames, and sound as the frames come.

The phrases of one text are one growing conversation, so that an uncloned voice stays the same person, and what its
slot holds of that is never computed again.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import TypeVar

from fishs2_daemon.engines.base import S2_LANGUAGES, EngineOptions, Progress, Utterance, pauses
from fishs2_daemon.engines.rests import with_rests
from fishs2_daemon.engines.s2.answer import Answer
from fishs2_daemon.engines.s2.guards import frame_budget
from fishs2_daemon.engines.s2.loading import Loaded, load
from fishs2_daemon.engines.s2.prompt import Conversation
from fishs2_daemon.engines.s2.pulse import end_if_hung
from fishs2_daemon.engines.s2.sampling import Sampling
from fishs2_daemon.engines.s2.scheduler import Seat
from fishs2_daemon.errors import EngineError
from fishs2_daemon.speech import EngineInfo, Pcm, Voice

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_VOICE = Voice("s2", "Fish Audio S2 Pro", S2_LANGUAGES)

#: Of the context, the share that stays when a long text has filled it: the voice, and how it began.
_ANCHOR = 1 / 4


class S2Engine:
    """`Engine` over a GGUF file of S2 Pro's architecture, whatever its sizes."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        # For what blocks and is no frame: loading, and the codes of clips.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="s2")
        self._loaded: Loaded | None = None
        self._watching: asyncio.Task[None] | None = None

    async def load(self, progress: Progress) -> EngineInfo:
        loop = asyncio.get_running_loop()

        def report(fraction: float) -> None:
            loop.call_soon_threadsafe(progress, "loading the model", fraction)

        self._loaded = loaded = await self._on_thread(lambda: load(self._options, report))
        if loaded.on_gpu:
            # A prompt may rightly take long where the first layers are the processor's.
            frames = [] if loaded.lower else [loaded.runner.pulse]
            self._watching = asyncio.create_task(end_if_hung([*frames, loaded.vocoder.pulse]))
        return self.info()

    def info(self) -> EngineInfo:
        loaded = self._ready
        return EngineInfo(
            "s2",
            loaded.model.config.codec.sample_rate,
            loaded.generator.slots,
            _VOICE.id,
            (_VOICE,),
            clones=True,
            device=loaded.backends[0].summary,
            frame_kernels=loaded.frame_kernels,
        )

    async def speak(self, utterance: Utterance) -> AsyncGenerator[Pcm, None]:
        loaded = self._ready
        references = [await self._on_thread(partial(loaded.clips.reference, clip)) for clip in utterance.clips]
        beginning = loaded.prompts.begin(references)
        rate = loaded.model.config.codec.sample_rate
        told = _Told(beginning, loaded.generator.context)
        seat: Seat | None = None
        try:
            async with aclosing(with_rests(utterance.phrases)) as phrases:
                async for phrase in phrases:
                    if phrase is None:
                        # What the slot held is read again, and the text goes on as if the slot had never gone.
                        if seat and loaded.runner.is_wanted:
                            loaded.runner.leave(seat)
                            seat = None
                            told.forget()
                        continue
                    seat = seat or loaded.runner.join(utterance.priority)
                    sampling = self._sampling(utterance, phrase)
                    answer = told.ask(
                        phrase if phrase.speaker is None else f"<|speaker:{phrase.speaker}|>{phrase}", sampling
                    )
                    loaded.runner.speak(seat, answer)
                    async for block in answer:
                        yield block
                        loaded.runner.wake(seat)
                    if answer.was_cut:
                        _log.warning("an answer did not end by itself after %d frames", answer.codes.shape[1])
                    told.hear(answer)
                    for silence in pauses(phrase, rate):
                        yield silence
            if not told.has_begun:
                seat = loaded.runner.join(utterance.priority)
                columns = beginning.columns
                answer = Answer(columns, fed=0, prefix=columns.shape[1], sampling=None)
                loaded.runner.speak(seat, answer)
                async for _ in answer:
                    pass
        finally:
            if seat:
                loaded.runner.leave(seat)

    async def close(self) -> None:
        if self._watching:
            self._watching.cancel()
        if loaded := self._loaded:
            self._loaded = None
            await self._on_thread(loaded.close)
        self._thread.shutdown(wait=False)

    @property
    def _ready(self) -> Loaded:
        if self._loaded is None:
            raise EngineError("the model is not loaded")
        return self._loaded

    async def _on_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _sampling(self, utterance: Utterance, phrase: str) -> Sampling:
        options, asked = self._options, utterance.sampling
        most = _or(asked.max_new_tokens, options.max_new_tokens)
        budget = frame_budget(len(self._ready.tokenizer.encode(phrase)), most)
        return Sampling(
            temperature=_or(asked.temperature, options.temperature),
            top_p=_or(asked.top_p, options.top_p),
            top_k=_or(asked.top_k, options.top_k),
            seed=_or(asked.seed, options.seed),
            max_frames=budget,
            min_frames=min(budget, _or(asked.min_tokens_before_end, options.min_tokens_before_end)),
        )


class _Told:
    """The conversation of one text: what was said, what the slot holds of it, and where to go on when it is full."""

    def __init__(self, beginning: Conversation, context: int) -> None:
        self.has_begun = False
        self._context = context
        self._prefix = beginning.columns.shape[1]
        self._conversation = beginning
        self._fed = 0
        self._anchor = beginning

    def ask(self, phrase: str, sampling: Sampling) -> Answer:
        turn = self._conversation.ask(phrase)
        frames = sampling.max_frames or 0
        if self._context - turn.columns.shape[1] <= frames and self._conversation is not self._anchor:
            self._conversation = self._anchor
            self._fed = min(self._fed, self._anchor.columns.shape[1])
            turn = self._conversation.ask(phrase)
        self._turn = turn
        self.has_begun = True
        return Answer(turn.columns, fed=self._fed, prefix=self._prefix, sampling=sampling)

    def forget(self) -> None:
        """The slot is another one's now."""
        self._fed = 0

    def hear(self, answer: Answer) -> None:
        self._conversation = self._turn.answered(answer.codes)
        self._fed = answer.fed
        if self._conversation.columns.shape[1] <= _ANCHOR * self._context:
            self._anchor = self._conversation


def _or(asked: _T | None, otherwise: _T) -> _T:
    return otherwise if asked is None else asked
