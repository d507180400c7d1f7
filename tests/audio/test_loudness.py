import numpy as np
import pytest

from fishs2_daemon.audio.loudness import HOP_S, LoudnessMeter
from tests.audio.signals import lufs, pcm, speech


def measured(samples: bytes, rate: int) -> float | None:
    meter = LoudnessMeter(rate)
    hop = 2 * round(rate * HOP_S)
    loudness = None
    for start in range(0, len(samples) - hop + 1, hop):
        loudness = meter.feed(samples[start : start + hop])
    return loudness


@pytest.mark.parametrize(("rate", "off_lu"), [(8000, 0.25), (16000, 0.1), (22050, 0.06), (44100, 0.03), (48000, 0.03)])
def test_agrees_with_the_standards_table(rate: int, off_lu: float) -> None:
    """The shelf ends at half the sample rate, so a low rate has a little more of it than the table for 48 kHz."""
    samples = speech(rate, 6.0)
    assert measured(samples, rate) == pytest.approx(lufs(samples, rate), abs=off_lu)


@pytest.mark.parametrize("level_dbfs", [-40.0, -23.0, -6.0])
def test_a_tone_has_the_loudness_that_the_standard_gives_it(level_dbfs: float) -> None:
    tone = 10 ** (level_dbfs / 20) * np.sin(2 * np.pi * 997 * np.arange(48000 * 2) / 48000)
    assert measured(pcm(tone), 48000) == pytest.approx(level_dbfs - 3.01, abs=0.05)


def test_pauses_do_not_count() -> None:
    spoken = speech(24000, 2.0)
    paused = spoken + bytes(2 * 24000 * 20) + spoken
    assert measured(paused, 24000) == pytest.approx(lufs(spoken, 24000), abs=0.5)


def test_silence_and_faint_noise_have_no_loudness() -> None:
    noise = 0.0005 * np.random.default_rng(1).standard_normal(24000)
    assert measured(bytes(48000), 24000) is None
    assert measured(pcm(noise), 24000) is None


def test_a_first_estimate_comes_after_60_ms_of_sound() -> None:
    rate = 24000
    hop = 2 * round(rate * HOP_S)
    tone = pcm(0.3 * np.sin(2 * np.pi * 997 * np.arange(rate) / rate))
    meter = LoudnessMeter(rate)
    hops = [bytes(hop)] * 10 + [tone[start : start + hop] for start in range(0, len(tone), hop)]
    estimates = [meter.feed(block) for block in hops]
    assert estimates[:12] == [None] * 12
    first = estimates[12]
    assert first == pytest.approx(lufs(tone, rate), abs=1.0)
