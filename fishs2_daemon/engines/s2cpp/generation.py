"""How libs2 draws a text, and how it hands over the sound."""

from dataclasses import dataclass

from fishs2_daemon.engines.base import EngineOptions
from fishs2_daemon.speech import SamplingOverrides

#: Left to libs2: the window of its codec's attention, 128 frames, rounded up to 144. Less would be heard at the seams;
#: more changes little, and each stride decodes all of it again.
CONTEXT_FRAMES = -1

#: None: the codec looks at no later frame, so holding some back gains nothing. libs2 by itself holds back 144, which
#: are 6.7 s.
HOLDBACK_FRAMES = 0

#: Frames of 46 ms in a block of sound. Each block costs the codec 144 frames more than it has. libs2's own 4 are 37
#: times the work of the sound itself, which a GPU has to spare while one frame at a time (`low_latency`, 145 times)
#: is more than most have.
GPU_STRIDE_FRAMES = 4

#: A processor spends more time on the codec than on the model, and is not heard without gaps in any case: 10 times.
CPU_STRIDE_FRAMES = 16

#: libs2 takes the best token alone where it is told 0; this many are all that a codebook has.
_EVERY_TOKEN = 4096


@dataclass(frozen=True, slots=True)
class Generation:
    """The arguments of libs2's generate parameters, in their order, but for the last one, `verbose`."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_tokens_before_end: int
    n_threads: int

    @classmethod
    def of(cls, options: EngineOptions, asked: SamplingOverrides) -> "Generation":
        """What was asked for, else what is set. libs2 knows no seed: its random numbers are seeded by the system."""
        most = options.max_new_tokens if asked.max_new_tokens is None else asked.max_new_tokens
        least = options.min_tokens_before_end if asked.min_tokens_before_end is None else asked.min_tokens_before_end
        return cls(
            max_new_tokens=most,
            temperature=options.temperature if asked.temperature is None else asked.temperature,
            top_p=options.top_p if asked.top_p is None else asked.top_p,
            top_k=(options.top_k if asked.top_k is None else asked.top_k) or _EVERY_TOKEN,
            min_tokens_before_end=min(least, most),
            n_threads=options.n_threads,
        )
