import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fishs2_daemon.audio.convert import PcmConverter

RATES = st.sampled_from([8000, 16000, 22050, 24000, 44100])
SPEEDS = st.one_of(st.just(1.0), st.floats(0.25, 4.0))


def sine(rate: int, hertz: float, seconds: float) -> bytes:
    time = np.arange(round(rate * seconds)) / rate
    return (np.sin(2 * np.pi * hertz * time) * 20000).astype("<i2").tobytes()


def loudest_hertz(samples: bytes, rate: int) -> float:
    wave = np.frombuffer(samples, "<i2").astype(float)
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    return float(np.argmax(spectrum)) * rate / len(wave)


def whole(samples: bytes, source: int, target: int, speed: float) -> bytes:
    converter = PcmConverter(source, target, speed)
    return converter.feed(samples) + converter.flush()


@settings(max_examples=60, deadline=None)
@given(
    source=RATES,
    target=RATES,
    speed=SPEEDS,
    samples=st.integers(0, 12000),
    cuts=st.lists(st.integers(0, 12000), max_size=12),
    seed=st.integers(0, 9),
)
def test_streamed_equals_whole_and_has_the_exact_length(
    source: int, target: int, speed: float, samples: int, cuts: list[int], seed: int
) -> None:
    noise = np.random.default_rng(seed).integers(-20000, 20000, samples).astype("<i2").tobytes()
    expected = whole(noise, source, target, speed)
    assert len(expected) == 2 * round(samples * (target / (source * speed)))
    borders = sorted({0, samples, *(cut for cut in cuts if cut < samples)})
    converter = PcmConverter(source, target, speed)
    blocks = [converter.feed(noise[2 * start : 2 * end]) for start, end in pairwise(borders)]
    assert b"".join(blocks) + converter.flush() == expected


def test_single_samples_as_blocks() -> None:
    noise = np.random.default_rng(1).integers(-20000, 20000, 3000).astype("<i2").tobytes()
    for speed in (1.0, 4.0, 0.25):
        converter = PcmConverter(22050, 24000, speed)
        blocks = [converter.feed(noise[start : start + 2]) for start in range(0, len(noise), 2)]
        assert b"".join(blocks) + converter.flush() == whole(noise, 22050, 24000, speed)


@pytest.mark.parametrize("speed", [0.25, 0.7, 1.0, 1.3, 2.0, 4.0])
def test_pitch_stays(speed: float) -> None:
    spoken = whole(sine(22050, 440, 2.0), 22050, 24000, speed)
    assert loudest_hertz(spoken, 24000) == pytest.approx(440, abs=4)


def test_resampled_sine_is_clean() -> None:
    spoken = np.frombuffer(whole(sine(22050, 3000, 1.0), 22050, 24000, 1.0), "<i2").astype(float)[1000:-1000]
    time = np.arange(1000, 1000 + len(spoken)) / 24000
    pair = np.stack([np.sin(2 * np.pi * 3000 * time), np.cos(2 * np.pi * 3000 * time)], axis=1)
    fit = pair @ np.linalg.lstsq(pair, spoken, rcond=None)[0]
    assert 10 * math.log10(float(np.var(fit) / np.var(spoken - fit))) > 80


def test_rate_alone_speaks_with_the_first_block() -> None:
    converter = PcmConverter(22050, 24000)
    block = sine(22050, 440, 0.02)
    assert len(converter.feed(block)) / 2 / 24000 > 0.019


@pytest.mark.parametrize(("speed", "held_s"), [(0.25, 0.1), (0.8, 0.08), (1.25, 0.08), (2.0, 0.1), (4.0, 0.24)])
def test_pace_holds_little_back(speed: float, held_s: float) -> None:
    converter = PcmConverter(22050, 24000, speed)
    audio = sine(22050, 440, 1.0)
    spoken = 0
    for start in range(0, len(audio), 882):
        spoken += len(converter.feed(audio[start : start + 882])) // 2
        heard_s = min(start + 882, len(audio)) / 2 / 22050
        assert heard_s - spoken / 24000 * speed < held_s


def test_nothing_to_do_passes_without_pyav() -> None:
    code = (
        "import sys; from fishs2_daemon.audio.convert import PcmConverter as C; c = C(24000, 24000);"
        "assert c.feed(b'ab') == b'ab' and c.flush() == b''; assert 'av' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
