"""How loud a stream of speech is, by EBU R128."""

import math
from array import array
from collections import deque
from collections.abc import Iterator
from operator import mul

from fishs2_daemon.audio.graph import FilterGraph

#: How much a meter is fed at a time.
HOP_S = 0.02

_HOPS_PER_WINDOW = 20  # ITU-R BS.1770-4: windows of 400 ms ...
_HOPS_PER_STEP = 5  # ... one every 100 ms
_ABSOLUTE_GATE_LUFS = -70.0
_RELATIVE_GATE_LU = -10.0

#: Speech has begun when a hop is louder; what an engine says before is breath and noise.
_ONSET_LUFS = -50.0

#: A first estimate from less sound than this would follow the first consonant.
_FIRST_HOPS = 3

#: The windows are kept by their loudness, so that an hour takes no more room than a second.
_BINS_PER_LU = 10


class LoudnessMeter:
    """Gated loudness of the speech so far. Until a window of 400 ms is full, the mean since the speech began."""

    def __init__(self, sample_rate: int) -> None:
        self._graph = FilterGraph(sample_rate, sample_rate, _k_weighting(sample_rate), "flt")
        self._window: deque[float] = deque(maxlen=_HOPS_PER_WINDOW)
        self._hops = 0
        self._energies: dict[int, tuple[int, float]] = {}
        self._gated_lufs: float | None = None

    def feed(self, hop: bytes) -> float | None:
        """LUFS with this hop of HOP_S, or None while there was no speech."""
        weighted = array("f", self._graph.push(hop))
        energy = sum(map(mul, weighted, weighted)) / len(weighted)
        if not self._hops and _lufs(energy) < _ONSET_LUFS:
            return None
        self._hops += 1
        self._window.append(energy)
        if self._hops < _HOPS_PER_WINDOW:
            return _lufs(_mean(self._window)) if self._hops >= _FIRST_HOPS else None
        if (self._hops - _HOPS_PER_WINDOW) % _HOPS_PER_STEP == 0:
            self._keep(_mean(self._window))
            self._gated_lufs = self._gated()
        return self._gated_lufs

    def _keep(self, energy: float) -> None:
        loudness = _lufs(energy)
        if loudness > _ABSOLUTE_GATE_LUFS:
            key = math.floor(loudness * _BINS_PER_LU)
            count, total = self._energies.get(key, (0, 0.0))
            self._energies[key] = (count + 1, total + energy)

    def _gated(self) -> float | None:
        if not self._energies:
            return None
        gate = _lufs(_bin_mean(self._energies)) + _RELATIVE_GATE_LU
        return _lufs(_bin_mean({key: value for key, value in self._energies.items() if key >= gate * _BINS_PER_LU}))


def _mean(energies: deque[float]) -> float:
    return sum(energies) / len(energies)


def _bin_mean(bins: dict[int, tuple[int, float]]) -> float:
    return sum(total for _, total in bins.values()) / sum(count for count, _ in bins.values())


def _lufs(energy: float) -> float:
    return -0.691 + 10 * math.log10(max(energy, 1e-12))


def _k_weighting(rate: int) -> Iterator[tuple[str, str]]:
    """BS.1770's two filters at any rate: bilinear transforms of the analogue filters behind its table for 48 kHz, with
    the parameters of B. De Man, "Evaluation of Implementations of the EBU R128 Loudness Measurement" (2018)."""
    yield "aformat", "sample_fmts=flt"
    # The head: a shelf of +4 dB above 1.7 kHz.
    k = math.tan(math.pi * 1681.974450955533 / rate)
    slope = k / 0.7071752369554196
    high = 10 ** (3.999843853973347 / 20)
    band = slope * high**0.4996667741545416
    scale = 1 + slope + k * k
    yield _biquad(
        ((high + band + k * k) / scale, 2 * (k * k - high) / scale, (high - band + k * k) / scale),
        (2 * (k * k - 1) / scale, (1 - slope + k * k) / scale),
    )
    # The high pass at 38 Hz, whose numerator the standard leaves without scale.
    k = math.tan(math.pi * 38.13547087602444 / rate)
    slope = k / 0.5003270373238773
    scale = 1 + slope + k * k
    yield _biquad((1, -2, 1), (2 * (k * k - 1) / scale, (1 - slope + k * k) / scale))


def _biquad(b: tuple[float, float, float], a: tuple[float, float]) -> tuple[str, str]:
    return "biquad", f"b0={b[0]!r}:b1={b[1]!r}:b2={b[2]!r}:a0=1:a1={a[0]!r}:a2={a[1]!r}:precision=f64"
