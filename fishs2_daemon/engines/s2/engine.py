"""S2 Pro behind the engine protocol: a phrase becomes a prompt, frames, and sound as the frames come.

The phrases of one text are one growing conversation, so that an uncloned voice stays the same person. One text at a
time; all native work runs on one thread, a frame at a time, and stops between two frames.
"""

import asyncio
import importlib.util
import logging
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.base import EngineOptions, Progress, Utterance
from fishs2_daemon.engines.s2.codec import Decoder, DecoderStream, converted
from fishs2_daemon.engines.s2.generator import Generator
from fishs2_daemon.engines.s2.ggml import Backend
from fishs2_daemon.engines.s2.gguf import GgufFile
from fishs2_daemon.engines.s2.guards import Guard, frame_budget
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.model_file import read_config
from fishs2_daemon.engines.s2.prompt import Conversation, PromptFormat, Turn
from fishs2_daemon.engines.s2.sampling import Sampling
from fishs2_daemon.engines.s2.tokenizer import Tokenizer
from fishs2_daemon.errors import EngineError
from fishs2_daemon.speech import EngineInfo, Pcm, Voice

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_SLOT = 0

#: Keys and values of this many positions are kept; a text that grows beyond starts its conversation anew.
_CONTEXT = 4096

_VOICE = "s2"
_LANGUAGES = ("en", "zh", "ja", "ko", "es", "pt", "ar", "ru", "fr", "de", "it", "nl", "pl", "tr", "sv")

_LOUDEST = 32767


@dataclass(slots=True)
class _Loaded:
    """What `load` made, all of it used on the engine's thread alone."""

    model: Model
    tokenizer: Tokenizer
    prompts: PromptFormat
    generator: Generator
    decoder: Decoder
    info: EngineInfo


class S2Engine:
    """`Engine` over a GGUF file of S2 Pro's architecture, whatever its sizes."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="s2")
        self._loaded: _Loaded | None = None

    async def load(self, progress: Progress) -> EngineInfo:
        loop = asyncio.get_running_loop()

        def report(fraction: float) -> None:
            loop.call_soon_threadsafe(progress, "loading the model", fraction)

        self._loaded = await self._on_thread(lambda: _load(self._options, report))
        return self._loaded.info

    def info(self) -> EngineInfo:
        return self._ready.info

    async def speak(self, utterance: Utterance) -> AsyncGenerator[Pcm, None]:
        loaded = self._ready
        conversation, cached = loaded.prompts.begin(), 0
        async for phrase in utterance.phrases:
            turn, cached = self._turn(conversation, phrase, cached)
            spoken: list[npt.NDArray[np.int32]] = []
            stream = await self._on_thread(partial(self._begin, turn, phrase, cached))
            guard = Guard(loaded.info.sample_rate)
            try:
                while not guard.is_stuck and (frame := await self._on_thread(partial(self._frame, stream))):
                    codes, samples = frame
                    spoken.append(codes)
                    guard.see(codes, samples)
                    yield Pcm(_pcm16(samples), loaded.info.sample_rate)
            finally:
                # Also when the listener left: behind the frame that may still be computed.
                await asyncio.wait([asyncio.ensure_future(self._on_thread(stream.close))])
            if guard.is_stuck or loaded.generator.finish(_SLOT) == "length":
                _log.warning("an answer did not end by itself after %d frames", len(spoken))
            conversation = turn.answered(np.stack(spoken, axis=1) if spoken else _no_codes(loaded))
            cached = turn.columns.shape[1]

    async def close(self) -> None:
        if loaded := self._loaded:
            self._loaded = None
            await self._on_thread(loaded.generator.close)
            await self._on_thread(loaded.model.close)
        self._thread.shutdown(wait=False)

    @property
    def _ready(self) -> _Loaded:
        if self._loaded is None:
            raise EngineError("the model is not loaded")
        return self._loaded

    async def _on_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _turn(self, conversation: Conversation, phrase: str, cached: int) -> tuple[Turn, int]:
        """The next message, and how many of its columns the slot holds; from the start again where context is short."""
        turn = conversation.ask(phrase)
        if self._ready.generator.context - turn.columns.shape[1] > self._budget(phrase):
            return turn, cached
        return self._ready.prompts.begin().ask(phrase), 0

    def _budget(self, phrase: str) -> int:
        return frame_budget(len(self._ready.tokenizer.encode(phrase)), self._options.max_new_tokens)

    def _begin(self, turn: Turn, phrase: str, cached: int) -> DecoderStream:
        loaded, options = self._ready, self._options
        unfed = turn.unfed(cached)
        loaded.generator.prefill(_SLOT, unfed, turn.columns.shape[1] - unfed.shape[1])
        sampling = Sampling(
            options.temperature, options.top_p, options.top_k, seed=options.seed, max_frames=self._budget(phrase)
        )
        loaded.generator.start(_SLOT, sampling)
        return loaded.decoder.open_stream()

    def _frame(self, stream: DecoderStream) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]] | None:
        (codes,) = self._ready.generator.step([_SLOT])
        return None if codes is None else (codes, stream.decode(codes[:, None]))


def _load(options: EngineOptions, report: Callable[[float], None]) -> _Loaded:
    if importlib.util.find_spec("ggml") is None:
        raise EngineError("the S2 engine needs ggml: pip install ggml-python==0.0.45 (it is built from source)")
    with GgufFile.open(options.model_path) as file:
        slow = read_config(file).slow
    tokenizer = Tokenizer.open(
        Path(options.tokenizer_path),
        vocab_size=slow.vocab,
        semantic_begin=slow.semantic_begin,
        semantic_end=slow.semantic_end,
    )
    backend = Backend.open(_backend_name(options), threads=options.n_threads or None)
    model = Model.load(options.model_path, backend, report, im_end=tokenizer.im_end, skip=converted)
    generator = Generator(model, slots=1, context=_CONTEXT)
    decoder = Decoder(model)
    voice = Voice(_VOICE, "Fish Audio S2 Pro", _LANGUAGES)
    info = EngineInfo("s2", model.config.codec.sample_rate, 1, _VOICE, (voice,))
    prompts = PromptFormat(tokenizer, codebooks=slow.codebooks, codebook_size=slow.codebook_size)
    _log.info("S2 on %s, %d threads", backend.description, backend.threads)
    return _Loaded(model, tokenizer, prompts, generator, decoder, info)


def _backend_name(options: EngineOptions) -> str:
    if options.backend in ("auto", "cpu"):
        return options.backend
    if options.backend == "cuda":
        return f"cuda:{options.gpu_device}"
    raise EngineError(f"FISHS2_BACKEND={options.backend} is not supported by the S2 engine; allowed: auto, cuda, cpu")


def _pcm16(samples: npt.NDArray[np.float32]) -> bytes:
    return np.rint(np.clip(samples, -1.0, 1.0) * _LOUDEST).astype("<i2").tobytes()


def _no_codes(loaded: _Loaded) -> npt.NDArray[np.int32]:
    return np.zeros((loaded.model.config.slow.codebooks, 0), np.int32)
