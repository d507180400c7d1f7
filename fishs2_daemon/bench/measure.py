"""Rounds of answers that are asked for at the same moment, and their figures."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from fishs2_daemon.bench.playback import CONTINUITY_S, Block, Heard, percentiles, share_below
from fishs2_daemon.bench.texts import Texts
from fishs2_daemon.errors import SynthesisError
from fishs2_daemon.service import SpeechService
from fishs2_daemon.speech import AS_SET, SamplingOverrides, SpeechRequest

_DIGITS = 5


class Speaker(Protocol):
    """Who is measured. `speak` raises `Fishs2Error`."""

    async def speak(self, text: str) -> Heard: ...


@dataclass(frozen=True, slots=True)
class Own:
    """This daemon's service."""

    service: SpeechService
    voice: str | None = None
    sampling: SamplingOverrides = AS_SET

    async def speak(self, text: str) -> Heard:
        blocks = []
        request = SpeechRequest(text, self.voice, sampling=self.sampling)
        began = time.perf_counter()
        async with aclosing(self.service.speak(request)) as speech:
            async for block in speech:
                at_s = time.perf_counter() - began
                blocks.append(Block(at_s, block.duration_s, any(block.samples)))
        return heard("the engine", text, blocks)


def heard(name: str, text: str, blocks: Sequence[Block]) -> Heard:
    """Raises `SynthesisError` for an answer in which there is nothing to hear."""
    if not any(block.is_audible for block in blocks):
        raise SynthesisError(f"{name} answered with silence to: {text}")
    return Heard(text, tuple(blocks))


@dataclass(slots=True)
class Level:
    """What one speaker said at a number of streams; `wall_s` is that of all rounds together. `peak_ram_mb` and
    `vram_mb` are those of the worker by then, None where that is unknown."""

    streams: int
    wall_s: float = 0.0
    answers: list[Heard] = field(default_factory=list)
    peak_ram_mb: float | None = None
    vram_mb: float | None = None

    def figures(self, frame_s: float | None) -> dict[str, Any]:
        """As JSON has them; `frame_s` is None where there are no frames."""
        audio_s = sum(answer.audio_s for answer in self.answers)
        gaps = [answer.underrun_s for answer in self.answers]
        return {
            "streams": self.streams,
            "answers": len(self.answers),
            "ttfa_ms": percentiles([1000 * answer.ttfa_s for answer in self.answers]),
            "rtf": percentiles([answer.rtf for answer in self.answers]),
            "frames_per_s": audio_s / frame_s / self.wall_s if frame_s else None,
            "audio_s_per_s": audio_s / self.wall_s,
            "audio_s": audio_s,
            "wall_s": self.wall_s,
            "underrun_s": sum(gaps),
            "continuity": {f"c{1000 * limit_s:.0f}": share_below(gaps, limit_s) for limit_s in CONTINUITY_S},
            "peak_ram_mb": self.peak_ram_mb,
            "vram_mb": self.vram_mb,
            "requests": [_raw(answer) for answer in self.answers],
        }


async def level(
    speakers: Sequence[Speaker], streams: int, repeat: int, texts: Texts, done: Callable[[], None]
) -> list[Level]:
    """`repeat` rounds for each speaker, in turns, so that a machine's moods meet all of them alike, of the same texts.

    A round before those is not counted: it builds what is built once. `done` is told of every round that counts.
    """
    levels = [Level(streams) for _ in speakers]
    for number in range(repeat + 1):
        batch = [texts.take() for _ in range(streams)]
        for speaker, measured in zip(speakers, levels, strict=True):
            began = time.perf_counter()
            answers = await _together(speaker, batch)
            if number:
                measured.wall_s += time.perf_counter() - began
                measured.answers += answers
                done()
    return levels


async def _together(speaker: Speaker, batch: Sequence[str]) -> list[Heard]:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(speaker.speak(text)) for text in batch]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def _raw(answer: Heard) -> dict[str, Any]:
    return {
        "text": answer.text,
        "ttfa_s": round(answer.ttfa_s, _DIGITS),
        "total_s": round(answer.total_s, _DIGITS),
        "audio_s": round(answer.audio_s, _DIGITS),
        "underrun_s": round(answer.underrun_s, _DIGITS),
        "blocks": [[round(block.at_s, _DIGITS), round(block.audio_s, _DIGITS)] for block in answer.blocks],
    }
