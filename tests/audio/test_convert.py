import math
import random
import subprocess
import sys
from array import array
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fishs2_daemon.audio.convert import PcmConverter

RATES = st.sampled_from([8000, 16000, 22050, 24000, 44100])
SPEEDS = st.one_of(st.just(1.0), st.floats(0.25, 4.0))


def sine(rate: int, hertz: float, seconds: float) -> bytes:
    step = 2 * math.pi * hertz / rate
    return array("h", (round(20000 * math.sin(step * index)) for index in range(round(rate * seconds)))).tobytes()


def noise(samples: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(2 * samples)


def hertz(samples: bytes, rate: int) -> float:
    wave = array("h", samples)
    crossings = sum(before < 0 <= after for before, after in pairwise(wave))
    return crossings * rate / len(wave)


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
    audio = noise(samples, seed)
    expected = whole(audio, source, target, speed)
    assert len(expected) == 2 * round(samples * (target / (source * speed)))
    borders = sorted({0, samples, *(cut for cut in cuts if cut < samples)})
    converter = PcmConverter(source, target, speed)
    blocks = [converter.feed(audio[2 * start : 2 * end]) for start, end in pairwise(borders)]
    assert b"".join(blocks) + converter.flush() == expected


def test_single_samples_as_blocks() -> None:
    audio = noise(3000, 1)
    for speed in (1.0, 4.0, 0.25):
        converter = PcmConverter(22050, 24000, speed)
        blocks = [converter.feed(audio[start : start + 2]) for start in range(0, len(audio), 2)]
        assert b"".join(blocks) + converter.flush() == whole(audio, 22050, 24000, speed)


@pytest.mark.parametrize("speed", [0.25, 0.7, 1.0, 1.3, 2.0, 4.0])
def test_pitch_stays(speed: float) -> None:
    spoken = whole(sine(22050, 440, 2.0), 22050, 24000, speed)
    assert hertz(spoken, 24000) == pytest.approx(440, rel=0.02)


def test_resampled_sine_is_clean() -> None:
    spoken = array("h", whole(sine(22050, 3000, 1.0), 22050, 24000, 1.0))[1000:-1000]
    period = 24000 // 3000
    # What repeats every period is the tone; the rest is what the conversion added.
    tone = [sum(spoken[phase::period]) / len(spoken[phase::period]) for phase in range(period)]
    power = sum(tone[index % period] ** 2 for index in range(len(spoken)))
    error = sum((sample - tone[index % period]) ** 2 for index, sample in enumerate(spoken))
    assert 10 * math.log10(power / error) > 80


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
