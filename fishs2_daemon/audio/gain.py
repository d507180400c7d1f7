"""Volume of a PCM stream: by a step, to a loudness, and never beyond what 16 bits hold."""

import math
from array import array

from fishs2_daemon.audio.loudness import HOP_S, LoudnessMeter

#: Where normalised speech is brought to. A voice alone, as assistants and audiobooks have it; EBU R128's -23 is for
#: programmes beside music.
TARGET_LUFS = -18.0

_SAMPLE_BYTES = 2

#: Gain moves from one border of such blocks to the next in a straight line, and one block is looked ahead.
_BLOCK_S = 0.005
_BLOCKS_PER_HOP = round(HOP_S / _BLOCK_S)

#: -1 dBFS: what lossy encoders and resamplers add to peaks stays below full scale.
_CEILING = 10 ** (-1 / 20) * 32768

#: Peaks are stepped back from at once; slow enough on the way up that a period of a deep voice is not bent.
_RELEASE_DB_PER_S = 40.0
_RELEASE = 10 ** (_RELEASE_DB_PER_S * _BLOCK_S / 20)

#: Normalisation follows its estimate no faster, in both directions, and takes no more liberty than this in all:
#: a recording 20 dB too faint is noise.
_APPROACH_DB_PER_S = 30.0
_APPROACH_DB = _APPROACH_DB_PER_S * _BLOCK_S
_MOST_CHANGE_DB = 20.0


class Gain:
    """Signed 16-bit mono blocks `volume_db` louder, after they were brought to TARGET_LUFS where that is asked.

    The gain bends where a peak would pass -1 dBFS; nothing is clipped. It holds back 5 to 10 ms. As many samples come
    out as went in, and they depend on these alone, never on the block borders.

    Normalisation has one pass and no knowledge of what comes: it starts without a change, moves by at most 30 dB/s
    from 60 ms after the first sound, and stays once it is there. Only normalisation imports PyAV.
    """

    def __init__(self, sample_rate: int, volume_db: float = 0.0, *, normalize_loudness: bool = False) -> None:
        self._idle = not volume_db and not normalize_loudness
        self._volume_db = volume_db
        self._meter = LoudnessMeter(sample_rate) if normalize_loudness else None
        self._hop = bytearray()
        self._wanted_db = 0.0
        self._change_db = 0.0
        self._block_bytes = _SAMPLE_BYTES * round(sample_rate * _BLOCK_S)
        self._pending = bytearray()
        self._held = array("h")
        self._held_gain = math.inf
        self._border_gain = math.inf

    def feed(self, samples: bytes) -> bytes:
        """What can be said so far; `samples` are whole samples."""
        if self._idle:
            return samples
        self._pending += samples
        usable = len(self._pending) - len(self._pending) % self._block_bytes
        done = [self._take(self._pending[at : at + self._block_bytes]) for at in range(0, usable, self._block_bytes)]
        del self._pending[:usable]
        return b"".join(done)

    def flush(self) -> bytes:
        """The rest, at the end of the stream. The gain is used up."""
        rest = self._take(self._pending) if self._pending else b""
        return rest + _ramp(self._held, self._border_gain, min(self._held_gain, self._border_gain * _RELEASE))

    def _take(self, samples: bytearray) -> bytes:
        """Gives the block that was held, now that it is known where its gain must end, and holds this one."""
        block = array("h", bytes(samples))
        gain = min(self._wanted_gain(samples), _CEILING / max(max(block), -min(block), 1))
        end = min(self._held_gain, gain, self._border_gain * _RELEASE) if self._held else gain
        done = _ramp(self._held, self._border_gain, end)
        self._held, self._held_gain, self._border_gain = block, gain, end
        return done

    def _wanted_gain(self, samples: bytearray) -> float:
        if self._meter is not None:
            self._hop += samples
            if len(self._hop) >= _BLOCKS_PER_HOP * self._block_bytes:
                self._follow(self._meter.feed(bytes(self._hop)))
                self._hop.clear()
            missing = self._wanted_db - self._change_db
            self._change_db += max(-_APPROACH_DB, min(_APPROACH_DB, missing))
        return 10 ** ((self._volume_db + self._change_db) / 20)

    def _follow(self, lufs: float | None) -> None:
        if lufs is not None:
            self._wanted_db = max(-_MOST_CHANGE_DB, min(_MOST_CHANGE_DB, TARGET_LUFS - lufs))


def _ramp(block: "array[int]", start: float, end: float) -> bytes:
    if start == end or not block:
        return array("h", [math.floor(sample * start + 0.5) for sample in block]).tobytes()
    step = (end - start) / len(block)
    return array(
        "h", [math.floor(sample * (start + step * index) + 0.5) for index, sample in enumerate(block)]
    ).tobytes()
