"""Sound to speak with in tests, and what a listener makes of an encoded answer."""

import io
import subprocess
import sys
from itertools import pairwise

import av
import numpy as np
from numpy.typing import NDArray

Wave = NDArray[np.float64]


def speech(rate: int, seconds: float, *, level: float = 0.3, seed: int = 1) -> bytes:
    """Moving harmonics in syllables of a quarter of a second, with a pause after every two seconds."""
    random = np.random.default_rng(seed)
    t = np.arange(round(rate * seconds)) / rate
    phase = np.cumsum(2 * np.pi * (130 + 40 * np.sin(2 * np.pi * 0.7 * t)) / rate)
    voice = np.sum([np.sin(harmonic * phase + harmonic) / harmonic for harmonic in range(1, 24)], axis=0)
    syllables = np.sqrt(np.abs(np.sin(2 * np.pi * 2.0 * t))) * (t % 2.5 < 2.0)
    wave = level * 0.5 * voice * syllables + 0.0005 * random.standard_normal(len(t))
    return pcm(wave)


def pcm(wave: Wave) -> bytes:
    return np.clip(np.round(wave * 32767), -32768, 32767).astype("<i2").tobytes()


def waveform(samples: bytes) -> Wave:
    return np.frombuffer(samples, "<i2") / 32768


def decoded(data: bytes, container: str | None = None) -> tuple[Wave, int]:
    """All the whole frames of a file or of a stream that was cut, and their rate; no frame is an empty wave."""
    blocks: list[Wave] = [np.zeros(0)]
    try:
        with av.open(io.BytesIO(data), "r", format=container) as file:
            stream = file.streams.audio[0]
            for packet in file.demux(stream):
                for frame in packet.decode():
                    block = frame.to_ndarray()[0]
                    blocks.append(block / 32768 if block.dtype.kind == "i" else block.astype(np.float64))
            return np.concatenate(blocks), stream.rate
    except (av.EOFError, av.InvalidDataError):
        return np.concatenate(blocks), 0


def lag(heard: Wave, spoken: Wave) -> int:
    """How many samples later `heard` says what `spoken` says."""
    size = 1 << (len(heard) + len(spoken)).bit_length()
    correlation = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(spoken, size)), size)
    best = int(np.argmax(correlation))
    return best if best < size // 2 else best - size


def likeness(heard: Wave, spoken: Wave, behind: int = 0) -> float:
    """Correlation, 1 for the same wave, of `heard` from `behind` on."""
    heard = heard[max(0, behind) :]
    size = min(len(heard), len(spoken))
    return float(np.corrcoef(heard[:size], spoken[:size])[0, 1])


def cut(samples: bytes, borders: list[int]) -> list[bytes]:
    """Blocks of whole samples, cut at these sample numbers."""
    count = len(samples) // 2
    edges = sorted({0, count, *(border for border in borders if border < count)})
    return [samples[2 * start : 2 * end] for start, end in pairwise(edges)]


def pitch(samples: bytes, rate: int) -> float:
    """Of a steady tone in Hz, by autocorrelation over 50 to 500 Hz."""
    wave = waveform(samples)
    size = 1 << (2 * len(wave)).bit_length()
    correlation = np.fft.irfft(np.abs(np.fft.rfft(wave, size)) ** 2)[: rate // 50]
    at = int(np.argmax(correlation[rate // 500 :])) + rate // 500
    before, peak, after = correlation[at - 1 : at + 2]
    return float(rate / (at + (before - after) / (2 * (before - 2 * peak + after))))


def lufs(samples: bytes, rate: int) -> float:
    """Integrated loudness by ITU-R BS.1770-4, weighted by its table for 48 kHz in the frequency domain."""
    wave = waveform(samples)
    z = np.exp(-2j * np.pi * np.fft.rfftfreq(len(wave), 1 / rate) / 48000)
    shelf = np.polyval([1.19839281085285, -2.69169618940638, 1.53512485958697], z)
    shelf /= np.polyval([0.73248077421585, -1.69065929318241, 1.0], z)
    high_pass = np.polyval([1.0, -2.0, 1.0], z) / np.polyval([0.99007225036621, -1.99004745483398, 1.0], z)
    weighted = np.fft.irfft(np.fft.rfft(wave) * shelf * high_pass, len(wave))
    so_far = np.concatenate([[0.0], np.cumsum(weighted**2)])
    window = round(0.4 * rate)
    energy = ((so_far[window:] - so_far[:-window]) / window)[:: round(0.1 * rate)]
    loud = energy[energy > 10 ** (-69.309 / 10)]
    loud = loud[loud > loud.mean() / 10]
    return float(-0.691 + 10 * np.log10(loud.mean()))


def runs_without_pyav(code: str) -> None:
    subprocess.run([sys.executable, "-c", f"{code}\nimport sys\nassert 'av' not in sys.modules"], check=True)
