"""s2.cpp behind the engine protocol: each phrase is a call of its own into libs2."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass
from pathlib import Path

from fishs2_daemon.engines.base import S2_LANGUAGES, EngineOptions, Progress, Utterance, pauses
from fishs2_daemon.engines.rests import with_rests
from fishs2_daemon.engines.s2cpp.generation import Generation
from fishs2_daemon.engines.s2cpp.library import S2Library
from fishs2_daemon.engines.s2cpp.model import ModelFiles, devices
from fishs2_daemon.engines.s2cpp.pipeline import Pipeline, Reference
from fishs2_daemon.engines.s2cpp.references import References
from fishs2_daemon.engines.s2cpp.samples import SAMPLE_RATE
from fishs2_daemon.engines.s2cpp.text_voice import Cast
from fishs2_daemon.engines.s2cpp.thread import Handover, NativeThread
from fishs2_daemon.errors import EngineError
from fishs2_daemon.speech import EngineInfo, Pcm, Voice

_log = logging.getLogger(__name__)

_VOICE = Voice("default", "Fish Audio S2 Pro", S2_LANGUAGES)

#: A pipeline speaks one text at a time.
_SLOTS = 1


@dataclass(slots=True)
class _Loaded:
    pipeline: Pipeline
    references: References

    def close(self) -> None:
        self.references.clear()
        self.pipeline.close()


class S2CppEngine:
    """`Engine` over libs2, of any release from v1.0.0 on.

    Where it streams, a text that nobody listens to any more ends within a block. Releases that do not stream speak a
    phrase to its end, and their pipeline is taken until then.
    """

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._thread = NativeThread()
        self._free = asyncio.Lock()
        self._loaded: _Loaded | None = None
        self._sink: Handover | None = None
        self._told_seed = False

    async def load(self, progress: Progress) -> EngineInfo:
        progress("loading libs2 and the model", 0.0)
        self._loaded = await self._thread.run(self._open)
        return self.info()

    def info(self) -> EngineInfo:
        device = f"{self._ready.pipeline.device} (s2.cpp)"
        return EngineInfo("s2cpp", SAMPLE_RATE, _SLOTS, _VOICE.id, (_VOICE,), clones=True, device=device)

    async def speak(self, utterance: Utterance) -> AsyncGenerator[Pcm, None]:
        if len(utterance.clips) > 1:
            raise EngineError(
                f"{len(utterance.clips)} recordings for one text: libs2 takes one; allowed: one voice a text, or "
                "FISHS2_ENGINE=s2"
            )
        self._tell_seed(utterance.sampling.seed)
        generation = Generation.of(self._options, utterance.sampling)
        async with aclosing(with_rests(utterance.phrases)) as phrases, AsyncExitStack() as turn:
            await turn.enter_async_context(self._free)
            loaded, holds = self._ready, True
            cast = Cast(loaded.references, utterance.clips[0] if utterance.clips else None)
            try:
                await self._thread.run(cast.voice(None).reference)
                async for phrase in phrases:
                    if phrase is None:
                        await turn.aclose()
                        holds = False
                        continue
                    if not holds:
                        await turn.enter_async_context(self._free)
                        holds = True
                    if phrase.strip():
                        voice = cast.voice(phrase.speaker)
                        reference = await self._thread.run(voice.reference)
                        async with aclosing(self._say(phrase, generation, reference)) as blocks:
                            async for block in blocks:
                                voice.hear(block.samples)
                                yield block
                        voice.said(phrase)
                    for silence in pauses(phrase, SAMPLE_RATE):
                        yield silence
            finally:
                if self._loaded is loaded:
                    await self._thread.run(cast.release)

    async def close(self) -> None:
        if loaded := self._loaded:
            self._loaded = None
            if self._sink:
                self._sink.cancel()
            await self._thread.run(loaded.close)
        self._thread.end()

    @property
    def _ready(self) -> _Loaded:
        if self._loaded is None:
            raise EngineError("libs2 is not loaded")
        return self._loaded

    async def _say(self, text: str, wanted: Generation, reference: Reference | None) -> AsyncGenerator[Pcm, None]:
        sink = self._sink = Handover()
        pipeline = self._ready.pipeline

        def speak() -> None:
            try:
                pipeline.speak(text, wanted, reference, sink)
            finally:
                sink.end()

        speaking = asyncio.ensure_future(self._thread.run(speak))
        try:
            while samples := await sink.take():
                yield Pcm(samples, SAMPLE_RATE)
            await speaking
            self._ready  # noqa: B018 - closed meanwhile, it was not spoken to its end
        finally:
            sink.cancel()
            await asyncio.wait([speaking])
            with suppress(EngineError):
                speaking.result()

    def _open(self) -> _Loaded:
        """On the thread."""
        options = self._options
        library = S2Library.load(options.runtime_dir, options.s2_dll_path, options.runtime_extra_dll_dirs)
        files = ModelFiles(Path(options.model_path), Path(options.tokenizer_path))
        files.check()
        *others, last = devices(options, library)
        for device in others:
            try:
                return self._with(Pipeline(library, files, device))
            except EngineError as error:
                _log.warning("%s; trying the next one", error)
        return self._with(Pipeline(library, files, last))

    def _with(self, pipeline: Pipeline) -> _Loaded:
        if not pipeline.streams:
            _log.warning("this libs2 does not stream: each phrase is heard when it is whole")
        return _Loaded(pipeline, References(pipeline, self._options.n_threads))

    def _tell_seed(self, seed: int | None) -> None:
        """Not an error: a stored voice may carry one, and would be mute on this engine."""
        if seed is not None and not self._told_seed:
            self._told_seed = True
            _log.warning("libs2 takes no seed: a text sounds a little different each time")
