"""Comparing speech. espeak-ng keeps a little state from one text to the next, so two readings are never the same
samples; their loudness over time is."""

from array import array
from statistics import correlation

_FRAME = 1764  # 80 ms at 22.05 kHz


def envelope(audio: bytes) -> list[float]:
    """Mean amplitude of each 80 ms."""
    samples = array("h", audio)
    return [sum(map(abs, samples[at : at + _FRAME])) / _FRAME for at in range(0, len(samples) - _FRAME + 1, _FRAME)]


def is_alike(one: bytes, other: bytes) -> bool:
    """Whether both say the same thing: within 2 % as long, and as loud at the same times."""
    if abs(len(one) - len(other)) > 0.02 * max(len(one), len(other)):
        return False
    first, second = envelope(one), envelope(other)
    # Durations differ by a fraction of a percent: stretch the shorter one.
    common = max(len(first), len(second))
    first, second = ([sound[index * len(sound) // common] for index in range(common)] for sound in (first, second))
    return correlation(first, second) > 0.7
