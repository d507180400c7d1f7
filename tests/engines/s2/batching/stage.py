"""A model, its threads, and listeners: what the tests of continuous batching play on."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.answer import Answer
from fishs2_daemon.engines.s2.codec import Decoder
from fishs2_daemon.engines.s2.generator import Generator
from fishs2_daemon.engines.s2.prefixes import Prefixes
from fishs2_daemon.engines.s2.prompt import Columns, PromptFormat
from fishs2_daemon.engines.s2.runner import Runner
from fishs2_daemon.engines.s2.sampling import Sampling
from fishs2_daemon.engines.s2.scheduler import Seat
from fishs2_daemon.engines.s2.tiny import TINY
from fishs2_daemon.engines.s2.tokenizer import Tokenizer
from fishs2_daemon.engines.s2.vocoder import Vocoder

GOLDEN = Path(__file__).parents[3] / "golden"
META = json.loads((GOLDEN / "golden_meta.json").read_text())
AR = np.load(GOLDEN / "golden_ar.npz")
PROMPTS: list[Columns] = [AR["A_prompt"], AR["B_prompt"], AR["long_prompt_0"], AR["long_prompt_2"]]

GREEDY = Sampling(top_k=1, max_frames=24)
SLOTS = 4

#: A codec that is done with a frame in no time, in place of the golden one.
QUICK = replace(
    TINY, layers=1, fast_layers=1, latent=24, decoder_width=16, encoder_width=4, encoder_rates=(2, 3),
    decoder_rates=(3, 2), encoder_layers=(0, 0), codec_layers=2, codec_heads=3, codec_head_dim=6, codec_ffn=20,
)  # fmt: skip
FRAME = 24
RATE = 516  # so that a frame sounds as long as it does

#: Longer than anything here takes on a machine that is busy with other things.
PATIENCE_S = 40

prompts = PromptFormat(
    Tokenizer.open(
        GOLDEN / "tokenizer.json",
        vocab_size=META["vocab_size"],
        semantic_begin=META["semantic_begin"],
        semantic_end=META["semantic_end"],
    ),
    codebooks=10,
    codebook_size=META["codebook_size"],
)


@dataclass
class Machine:
    """A model on the device, and what is made of it once. The threads of each test are its own."""

    generator: Generator
    decoder: Decoder
    #: Of its own, for what is expected.
    whole_decoder: Decoder
    prefixes: Prefixes = field(default_factory=lambda: Prefixes(8 << 20))

    @contextmanager
    def running(self, *, run_ahead: bool = False) -> Iterator["Stage4"]:
        vocoder = Vocoder(self.decoder, RATE, FRAME)
        runner = Runner(self.generator, vocoder, self.prefixes, frame_s=FRAME / RATE, run_ahead=run_ahead)
        try:
            yield Stage4(self, runner, vocoder)
        finally:
            runner.close()
            vocoder.close()
            for track in vocoder._tracks.values():
                if track.stream:
                    track.stream.close()
            self.prefixes.clear()
            assert self.free_streams == SLOTS

    @property
    def free_streams(self) -> int:
        return len(self.decoder._streams._pool._free)

    def alone(self, prompt: Columns, sampling: Sampling = GREEDY) -> npt.NDArray[np.int32]:
        """Codes `[K, n]` of a prompt that is read whole into an empty slot. Not while a runner is there."""
        self.generator.abandon()
        self.generator.prefill(0, prompt)
        self.generator.start(0, sampling)
        frames = []
        while (codes := self.generator.step([0])[0]) is not None:
            frames.append(codes)
        return np.stack(frames, axis=1) if frames else np.zeros((10, 0), np.int32)

    def whole(self, codes: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        with self.whole_decoder.open_stream() as stream:
            return stream.decode(codes)


@dataclass
class Heard:
    answer: Answer
    blocks: list[bytes] = field(default_factory=list)

    @property
    def samples(self) -> npt.NDArray[np.float32]:
        """Where `exact_samples` is in use."""
        return np.frombuffer(b"".join(self.blocks), np.float32)

    @property
    def frames(self) -> list[list[int]]:
        frames: list[list[int]] = self.answer.codes.T.tolist()
        return frames


@dataclass
class Stage4:
    """Four slots, and listeners."""

    machine: Machine
    runner: Runner
    vocoder: Vocoder

    def ask(
        self, seat: Seat, prompt: Columns, sampling: Sampling | None = GREEDY, *, fed: int = 0, prefix: int = 0
    ) -> Answer:
        answer = Answer(prompt, fed=fed, prefix=prefix, sampling=sampling)
        self.runner.speak(seat, answer)
        return answer

    async def hear(self, seat: Seat, answer: Answer) -> Heard:
        heard = Heard(answer)
        async with asyncio.timeout(PATIENCE_S):
            async for block in answer:
                heard.blocks.append(block.samples)
                self.runner.wake(seat)
        return heard

    async def say(self, seat: Seat, prompt: Columns, sampling: Sampling | None = GREEDY, **held: int) -> Heard:
        return await self.hear(seat, self.ask(seat, prompt, sampling, **held))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.002)

    async def quiet(self) -> None:
        """Until both threads wait for something to do."""
        for commands in (self.runner._commands, self.vocoder._commands):
            done = threading.Event()
            commands.put(done.set)
            await self.until(done.is_set)


def has_frames(answer: Answer, least: int) -> bool:
    return len(answer.frames) >= least
