"""One answer as its listener hears it, and what is said of many of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

#: Silence in an answer that a listener may not notice, notices, and is bothered by: C50, C100 and C200 of the field.
CONTINUITY_S = (0.05, 0.1, 0.2)

#: Percentiles of every distribution.
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Block:
    """`at_s` counts from the moment of asking."""

    at_s: float
    audio_s: float
    is_audible: bool


@dataclass(frozen=True, slots=True)
class Heard:
    """`total_s` is from asking to the last block; `blocks` has one that is audible."""

    text: str
    blocks: tuple[Block, ...]

    @property
    def ttfa_s(self) -> float:
        return next(block.at_s for block in self.blocks if block.is_audible)

    @property
    def total_s(self) -> float:
        return self.blocks[-1].at_s

    @property
    def audio_s(self) -> float:
        return sum(block.audio_s for block in self.blocks)

    @property
    def rtf(self) -> float:
        return self.total_s / self.audio_s

    @property
    def underrun_s(self) -> float:
        """See `underrun`; what was there before the first sound does not count."""
        first = next(index for index, block in enumerate(self.blocks) if block.is_audible)
        return underrun([(block.at_s, block.audio_s) for block in self.blocks[first:]])


def underrun(arrivals: Sequence[tuple[float, float]]) -> float:
    """Seconds of silence between the first and the last of `arrivals` (when, and how much, in seconds), for one who
    plays at the natural pace from the first one on, and waits for what is late."""
    silence_s, ends_s = 0.0, arrivals[0][0]
    for at_s, audio_s in arrivals:
        silence_s += max(0.0, at_s - ends_s)
        ends_s = max(at_s, ends_s) + audio_s
    return silence_s


def share_below(values: Sequence[float], limit: float) -> float:
    return sum(value < limit for value in values) / len(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """Between two values, in proportion."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{percent}": percentile(values, percent) for percent in PERCENTILES}
