"""Ratios that developers watch: each is of two times of the same minute on one machine, however fast that is."""

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from fishs2_daemon.bench import machine
from fishs2_daemon.bench.inside import Going, Inside, aside, fixed, opened
from fishs2_daemon.bench.spent import host_times
from fishs2_daemon.bench.texts import sentence
from fishs2_daemon.engines.s2.codec import DecoderStream
from fishs2_daemon.settings import Settings
from fishs2_daemon.speech import EngineInfo

_STREAMS = 8

#: A voice of ten seconds, and an answer as long.
_CONTEXT = 1024
_ANSWER_S = 10.0
_REFERENCE_S = 10.0

#: Where frames are compared, not answers.
_TOGETHER_S = 1.5

#: Where the first sound is all that matters.
_SHORT_FRAMES = 4

#: Of one stream of the codec, and how many are looked at in its beginning and at its end.
_CODEC_FRAMES = 5000
_CODEC_SAMPLE = 100
_CODEC_BLOCK = 8

#: A codec that takes longer for them gives way to the small model's.
_CODEC_MOST_S = 60.0

Codes = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Ratio:
    """`at_most` says on which side of `goal` `value` shall be; `detail` what it was made of."""

    name: str
    value: float
    goal: float
    at_most: bool
    detail: str

    @property
    def is_met(self) -> bool:
        return self.value <= self.goal if self.at_most else self.value >= self.goal


async def measure(settings: Settings, small: Settings, repeat: int, console: Console) -> dict[str, Any]:
    """All of them, each the median of `repeat` rounds or of many frames, with the model of `settings`; `small` has one
    with a codec that is fast enough for thousands of frames. Raises `EngineError`."""
    done = 0
    with console.status("loading the model") as status:
        try:
            with opened(settings, slots=_STREAMS, context=_CONTEXT) as inside:
                await inside.speak(_SHORT_FRAMES)
                ratios = []
                for name, ratio in _RATIOS.items():
                    status.update(f"measuring: {name}")
                    ratios.append(await ratio(inside, repeat))
                    await inside.rest()
                    done += 1
                status.update("measuring: the codec")
                ratios.append(await _codec(inside, small))
                generator = inside.loaded.generator
                rate = inside.loaded.model.config.codec.sample_rate
                info = EngineInfo("s2", rate, generator.slots, "", ())
                own = settings.model_copy(update={"context": generator.context, "slots": generator.slots})
                return {
                    "software": machine.software(),
                    "hardware": machine.hardware() | {"device": inside.loaded.backends[0].description},
                    "engine": machine.engine(own, info),
                    "asked": {"repeat": repeat},
                    "ratios": [asdict(ratio) | {"is_met": ratio.is_met} for ratio in ratios],
                    "notes": [],
                }
        except asyncio.CancelledError:
            print(f"stopped after {done} of {len(_RATIOS) + 1} ratios; nothing was written", file=sys.stderr)
            raise


async def _host(inside: Inside, repeat: int) -> Ratio:
    frames = inside.frames(_TOGETHER_S)
    with host_times() as seconds:
        for _ in range(repeat):
            await inside.speak(frames)
    await inside.rest()
    with host_times() as alone:
        await aside(lambda going: _bare_frames_per_s(inside, 1, frames, going))
    return Ratio(
        "host time a frame, ms", 1000 * median(seconds), 0.3, True,
        f"median of {len(seconds)} frames, outside of ggml; {1000 * median(alone):.2f} where no other thread is busy",
    )  # fmt: skip


async def _first_sound(inside: Inside, repeat: int) -> Ratio:
    frames = inside.frames(_ANSWER_S)
    streamed, whole, decoding = [], [], []
    for _ in range(repeat):
        streamed.append((await inside.speak(_SHORT_FRAMES)).first_sound_s)
        await inside.rest()
        total_s, decoding_s = await aside(lambda going: _offline(inside, frames, going))
        whole.append(total_s)
        decoding.append(decoding_s)
    value = median(streamed) / median(whole)
    return Ratio(
        "streamed TTFA / the whole answer", value, 0.1, True,
        f"{1000 * median(streamed):.0f} ms / {median(whole):.2f} s for {_ANSWER_S:g} s of sound, of which the codec "
        f"took {median(decoding):.2f} s",
    )  # fmt: skip


def _offline(inside: Inside, frames: int, going: Going) -> tuple[float, float]:
    """Seconds that an answer takes of which nothing is heard before its end, and the codec's part."""
    generator, decoder = inside.loaded.generator, inside.loaded.decoder
    columns = inside.loaded.prompts.begin().ask(sentence(0)).columns
    codes = []
    began = time.perf_counter()
    generator.prefill(0, columns)
    generator.start(0, fixed(frames))
    for _ in range(frames):
        going()
        codes += [each for each in generator.step([0]) if each is not None]
    made = time.perf_counter()
    with decoder.open_stream() as stream:
        for start in range(0, len(codes), _CODEC_BLOCK):  # as it would by itself, were it given all of them
            going()
            stream.decode(np.stack(codes[start : start + _CODEC_BLOCK], axis=1))
    ended = time.perf_counter()
    generator.rest(0, 0)
    return ended - began, ended - made


async def _together(inside: Inside, repeat: int) -> Ratio:
    frames = inside.frames(_TOGETHER_S)
    alone, together, frames_alone, frames_together = [], [], [], []
    await _frames_per_s(inside, _STREAMS, _SHORT_FRAMES)
    for _ in range(repeat):
        alone.append(await _frames_per_s(inside, 1, frames))
        together.append(await _frames_per_s(inside, _STREAMS, frames))
        await inside.rest()
        frames_alone.append(await aside(lambda going: _bare_frames_per_s(inside, 1, frames, going)))
        frames_together.append(await aside(lambda going: _bare_frames_per_s(inside, _STREAMS, frames, going)))
    with_sound = median(together) / median(alone)
    return Ratio(
        f"frames/s of {_STREAMS} streams / of one", median(frames_together) / median(frames_alone), 2.5, False,
        f"{median(frames_together):.1f} / {median(frames_alone):.1f}; with their sound, which shares the processor, "
        f"{median(together):.1f} / {median(alone):.1f} = {with_sound:.2f}",
    )  # fmt: skip


async def _frames_per_s(inside: Inside, streams: int, frames: int) -> float:
    began = time.perf_counter()
    answers = await asyncio.gather(*(inside.speak(frames) for _ in range(streams)))
    return sum(answer.frames for answer in answers) / (time.perf_counter() - began)


def _bare_frames_per_s(inside: Inside, streams: int, frames: int, going: Going) -> float:
    """Of the generator alone, prompts not counted."""
    generator, made = inside.loaded.generator, 0
    slots = range(streams)
    for slot in slots:
        going()
        generator.prefill(slot, inside.loaded.prompts.begin().ask(sentence(slot)).columns)
        generator.start(slot, fixed(frames))
    began = time.perf_counter()
    for _ in range(frames):
        going()
        made += sum(codes is not None for codes in generator.step(slots))
    took_s = time.perf_counter() - began
    for slot in slots:
        generator.rest(slot, 0)
    return made / took_s


async def _warm_voice(inside: Inside, repeat: int) -> Ratio:
    references = [inside.reference(_REFERENCE_S)]
    cold, warm = [], []
    for number in range(repeat + 1):
        await inside.rest()
        inside.loaded.prefixes.clear()
        first = await inside.speak(_SHORT_FRAMES, references)
        second = await inside.speak(_SHORT_FRAMES, references)
        if number:
            cold.append(first.first_frame_s)
            warm.append(second.first_frame_s)
    value = median(warm) / median(cold)
    return Ratio(
        "first frame of a warm voice / a cold one", value, 0.2, True,
        f"{1000 * median(warm):.0f} ms / {1000 * median(cold):.0f} ms, {_REFERENCE_S:g} s of reference",
    )  # fmt: skip


async def _codec(inside: Inside, small: Settings) -> Ratio:
    with ExitStack() as stack:
        block_s = await aside(lambda going: _block_s(inside))
        is_slow = block_s / _CODEC_BLOCK * _CODEC_FRAMES > _CODEC_MOST_S
        chosen = stack.enter_context(opened(small, slots=1, context=_CONTEXT)) if is_slow else inside
        early_s, late_s = await aside(lambda going: _codec_times(chosen, going))
    return Ratio(
        f"the codec's frame {_CODEC_FRAMES} / its first", late_s / early_s, 1.1, True,
        f"{1000 * late_s:.2f} ms / {1000 * early_s:.2f} ms, medians of {_CODEC_SAMPLE} frames"
        + (", of the tiny model" if is_slow else ""),
    )  # fmt: skip


def _block_s(inside: Inside) -> float:
    with inside.loaded.decoder.open_stream() as stream:
        codes = _random_codes(inside)
        stream.decode(codes)
        began = time.perf_counter()
        stream.decode(codes)
        return time.perf_counter() - began


def _codec_times(inside: Inside, going: Going) -> tuple[float, float]:
    """Seconds a frame of a stream's beginning and end: the last frames of an old one and the first of a new one, in
    turns."""
    codes, decoder = _random_codes(inside), inside.loaded.decoder
    early, late = [], []
    with decoder.open_stream() as old, decoder.open_stream() as new:
        for _ in range((_CODEC_FRAMES - _CODEC_SAMPLE) // _CODEC_BLOCK):
            going()
            old.decode(codes)
        with decoder.open_stream() as unused:
            _frame_s(unused, codes)
        for _ in range(_CODEC_SAMPLE):
            going()
            late.append(_frame_s(old, codes))
            early.append(_frame_s(new, codes))
    return median(early), median(late)


def _random_codes(inside: Inside) -> Codes:
    sizes = np.array(inside.loaded.model.config.codec.codebook_sizes)[:, None]
    return np.random.default_rng(0).integers(0, sizes, (len(sizes), _CODEC_BLOCK), np.int32)


def _frame_s(stream: DecoderStream, codes: Codes) -> float:
    began = time.perf_counter()
    stream.decode(codes[:, :1])
    return time.perf_counter() - began


_RATIOS: dict[str, Callable[[Inside, int], Coroutine[Any, Any, Ratio]]] = {
    "host time": _host,
    "first sound": _first_sound,
    "streams together": _together,
    "voices": _warm_voice,
}
