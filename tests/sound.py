"""Comparing speech. espeak-ng keeps a little state from one text to the next, so two readings are never the same
samples: they drift against each other by a few milliseconds. Their loudness over time is the same."""

from array import array

_FRAME = 882  # 40 ms at 22.05 kHz


def envelope(audio: bytes) -> list[float]:
    """Mean amplitude of each 40 ms."""
    samples = array("h", audio)
    return [sum(map(abs, samples[at : at + _FRAME])) / _FRAME for at in range(0, len(samples) - _FRAME + 1, _FRAME)]


def is_alike(one: bytes, other: bytes) -> bool:
    """Whether both say the same thing: within 2 % as long, and as loud at the same times, give or take a frame."""
    if abs(len(one) - len(other)) > 0.02 * max(len(one), len(other)):
        return False
    first, second = envelope(one), envelope(other)
    difference = 0.0
    for at, loudness in enumerate(first):
        nearby = second[max(at - 1, 0) : at + 2] or [0.0]
        if min(nearby) <= loudness <= max(nearby):
            continue
        difference += min(abs(loudness - other) for other in nearby)
    # Measured: up to 0.012 for the same text, 0.08 for two words that changed places.
    return difference < 0.04 * sum(first)
