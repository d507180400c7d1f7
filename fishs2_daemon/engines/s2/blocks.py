"""How many frames go into one block of sound: few where somebody waits, many where there is time.

The listener hears the first block at once, and every later one must be there before the ones before it have been
heard. A block of `n` frames takes `n * rtf` frames' time to make, `rtf` being the time that a frame takes over the
time that it sounds.
"""

from math import ceil, inf

from fishs2_daemon.engines.s2.sizes import FRAME_COUNTS

#: Blocks have these sizes, frames: those that one pass of the codec may have.
SIZES = tuple(reversed(FRAME_COUNTS))

#: Of the sound that is there already, the share that making the next block may take.
_MARGIN = 0.5

#: What a clock that is too coarse may call less.
_LEAST_RTF = 1e-3


def first_block(rtf: float | None) -> int:
    """Frames of the first block: one, unless the second would come too late then.

    While the first, of n, is heard, the next one is made: n >= rtf * (n + 1). Where speech is slower than itself
    nothing helps, and the first sound shall come early at least.
    """
    if rtf is None or rtf >= 1:
        return SIZES[0]
    return _size(ceil(rtf / (1 - rtf)), at_least=True)


def next_block(rtf: float | None, unheard: float) -> int:
    """Frames of a later block, while `unheard` frames of the ones before are still to be heard."""
    return SIZES[0] if rtf is None else _size(int(_MARGIN * unheard / max(rtf, _LEAST_RTF)))


def unheard_when_due(rtf: float, waiting: int) -> float:
    """When there are less than so many frames still to be heard, `waiting` ones are enough for a later block."""
    larger = next((size for size in SIZES if size > waiting), None)
    return inf if larger is None else larger * max(rtf, _LEAST_RTF) / _MARGIN


def _size(frames: int, *, at_least: bool = False) -> int:
    if at_least:
        return next((size for size in SIZES if size >= frames), SIZES[-1])
    return max((size for size in SIZES if size <= frames), default=SIZES[0])
