"""The S2 engine's parts in this process, without a worker: what `ratios` takes its times from."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fishs2_daemon.bench.texts import SENTENCE_S, sentence
from fishs2_daemon.engines.base import EngineOptions
from fishs2_daemon.engines.s2.answer import Answer
from fishs2_daemon.engines.s2.loading import Loaded, load
from fishs2_daemon.engines.s2.prompt import Reference
from fishs2_daemon.engines.s2.sampling import Sampling
from fishs2_daemon.settings import Settings
from fishs2_daemon.worker.process import engine_options

#: Between two looks at whether the last frame in flight was collected.
#: A made-up tokenizer has a token for nearly every byte: that many make as long a prompt as a sentence of S2 Pro's.
_TEXT_CHARS = 20

_LOOK_S = 0.005


#: Called by long work between its steps.
Going = Callable[[], None]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Spoken:
    """Seconds from asking to the first codes, the first sound and the last; and how many frames there were."""

    first_frame_s: float
    first_sound_s: float
    total_s: float
    frames: int


class Inside:
    """Use `opened`. Texts are of one sentence each, never the same one twice."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        codec = loaded.model.config.codec
        self.frame_s = codec.frame_samples / codec.sample_rate
        self._texts = 0

    def frames(self, seconds: float) -> int:
        return round(seconds / self.frame_s)

    def reference(self, seconds: float) -> Reference:
        """A voice of random codes: reading one takes as long whatever it sounds like."""
        sizes = self.loaded.model.config.codec.codebook_sizes
        shape = (len(sizes), self.frames(seconds))
        codes = np.random.default_rng(0).integers(0, min(sizes), shape, np.int32)
        return Reference(
            codes, " ".join(sentence(-1 - number) for number in range(max(1, round(seconds / SENTENCE_S))))
        )

    async def speak(self, frames: int, references: Sequence[Reference] = ()) -> Spoken:
        """An answer of exactly so many frames, on the road of every answer: runner and vocoder."""
        runner = self.loaded.runner
        beginning = self.loaded.prompts.begin(references)
        self._texts += 1
        columns = beginning.ask(sentence(self._texts)[-_TEXT_CHARS:]).columns
        answer = Answer(columns, fed=0, prefix=beginning.columns.shape[1], sampling=fixed(frames))
        times: list[float] = []
        made = answer.frames = _Frames()
        seat = runner.join()
        try:
            began = time.perf_counter()
            runner.speak(seat, answer)
            async for _ in answer:
                times.append(time.perf_counter() - began)
                runner.wake(seat)
        finally:
            runner.leave(seat)
        return Spoken(made.first_at - began, times[0], times[-1], answer.codes.shape[1])

    async def rest(self) -> None:
        """Until the engine's threads have nothing to do; the parts may be used directly then."""
        while self.loaded.generator.in_flight:  # noqa: ASYNC110 - the engine's thread tells nobody
            await asyncio.sleep(_LOOK_S)
        await asyncio.sleep(_LOOK_S)


@contextmanager
def opened(settings: Settings, *, slots: int, context: int) -> Iterator[Inside]:
    """The engine that `settings` name, of so many slots. Raises `EngineError`."""
    options = engine_options(settings, settings.gpu_device[0]) | {"slots": slots, "context": context}
    loaded = load(EngineOptions(**options), lambda fraction: None)
    try:
        yield Inside(loaded)
    finally:
        loaded.close()


async def aside(work: Callable[[Going], _T]) -> _T:
    """`work` on another thread. When the caller is cancelled it ends at its next call of what it is given, and is
    waited for: what it uses may be closed then."""
    over = threading.Event()

    def going() -> None:
        if over.is_set():
            raise InterruptedError

    task = asyncio.ensure_future(asyncio.to_thread(work, going))
    try:
        return await asyncio.shield(task)
    finally:
        over.set()
        await asyncio.gather(task, return_exceptions=True)


def fixed(frames: int) -> Sampling:
    """Exactly so many frames."""
    return Sampling(seed=1, min_frames=frames, max_frames=frames)


class _Frames(list[npt.NDArray[np.int32]]):
    """An answer's frames, with the moment of the first one."""

    first_at = 0.0

    def append(self, codes: npt.NDArray[np.int32]) -> None:
        self.first_at = self.first_at or time.perf_counter()
        super().append(codes)
