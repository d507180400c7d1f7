import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fishs2_daemon.audio.gain import TARGET_LUFS, Gain
from tests.audio.signals import Wave, cut, likeness, lufs, pcm, runs_without_pyav, speech, waveform

CEILING = 10 ** (-1 / 20)


def gained(blocks: list[bytes], rate: int, volume_db: float = 0.0, *, normalize: bool = False) -> bytes:
    gain = Gain(rate, volume_db, normalize_loudness=normalize)
    return b"".join([gain.feed(block) for block in blocks]) + gain.flush()


def part(samples: bytes, rate: int, start_s: float, end_s: float) -> bytes:
    return samples[2 * int(start_s * rate) : 2 * int(end_s * rate)]


def sine(rate: int, level: float, seconds: float = 1.0) -> Wave:
    return level * np.sin(2 * np.pi * 440 * np.arange(round(rate * seconds)) / rate)


@pytest.mark.parametrize("rate", [22050, 24000, 44100])
@pytest.mark.parametrize("volume_db", [-20.0, -6.0, -0.5, 0.5, 6.0, 12.0])
def test_volume_is_exact_where_there_is_room(rate: int, volume_db: float) -> None:
    spoken = speech(rate, 3.0, level=0.2)
    louder = gained([spoken], rate, volume_db)
    assert lufs(louder, rate) - lufs(spoken, rate) == pytest.approx(volume_db, abs=0.02)
    assert np.abs(waveform(louder) - waveform(spoken) * 10 ** (volume_db / 20)).max() <= 1 / 32768


@pytest.mark.parametrize("level", [0.1, 0.5, 1.0, 4.0])
def test_peaks_stay_below_the_ceiling_and_nothing_wraps_around(level: float) -> None:
    spoken = speech(24000, 3.0, level=level)
    louder = waveform(gained([spoken], 24000, 20.0))
    assert np.abs(louder).max() <= CEILING + 1 / 32768
    assert likeness(louder, waveform(spoken)) > 0.9


def test_full_scale_squares_are_turned_down_not_clipped() -> None:
    square = np.where(np.arange(24000) % 100 < 50, 32767, -32768).astype("<i2").tobytes()
    louder = waveform(gained([square], 24000, 20.0))
    assert np.abs(louder).max() <= CEILING + 1 / 32768
    assert np.abs(louder).min() > 0.98 * CEILING


def test_a_limited_tone_stays_a_tone() -> None:
    tone = sine(48000, 0.5, 2.0)
    louder = waveform(gained([pcm(tone)], 48000, 12.0))[4800:-4800]
    spectrum = np.abs(np.fft.rfft(louder * np.hanning(len(louder)))) ** 2
    at = int(np.argmax(spectrum))
    tone_power = spectrum[at - 3 : at + 4].sum()
    assert 10 * np.log10((spectrum.sum() - tone_power) / tone_power) < -50


def test_a_deep_voice_is_not_bent_period_by_period() -> None:
    rate = 48000
    t = np.arange(rate * 2) / rate
    pulses = 0.9 * np.exp(-((t * 70 % 1) * 8)) * np.sin(2 * np.pi * 700 * t)
    louder = waveform(gained([pcm(pulses)], rate, 12.0))[rate:]
    assert likeness(louder, pulses[rate:]) > 0.995


def test_the_gain_comes_back_after_a_peak() -> None:
    rate = 24000
    calm, shout = sine(rate, 0.2), sine(rate, 0.9, 0.1)
    louder = waveform(gained([pcm(np.concatenate([calm, shout, calm]))], rate, 6.0))
    tail = louder[-rate // 4 :]
    assert np.abs(tail).max() == pytest.approx(0.2 * 10 ** (6 / 20), rel=0.01)


@pytest.mark.parametrize("level", [0.05, 0.1, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("rate", [22050, 44100])
def test_speech_comes_to_the_target_within_half_a_second(level: float, rate: int) -> None:
    samples = gained([speech(rate, 8.0, level=level)], rate, normalize=True)
    assert lufs(samples, rate) == pytest.approx(TARGET_LUFS, abs=1.0)
    assert lufs(part(samples, rate, 0.5, 2.0), rate) == pytest.approx(TARGET_LUFS, abs=1.0)
    assert lufs(part(samples, rate, 4.0, 8.0), rate) == pytest.approx(TARGET_LUFS, abs=1.0)
    assert np.abs(waveform(samples)).max() <= CEILING + 1 / 32768


def test_volume_is_added_to_the_target() -> None:
    samples = gained([speech(24000, 6.0)], 24000, -6.0, normalize=True)
    assert lufs(samples, 24000) == pytest.approx(TARGET_LUFS - 6, abs=1.0)


def test_once_there_the_gain_stays_still() -> None:
    rate = 24000
    spoken = speech(rate, 20.0, level=0.1)
    ratio = [
        lufs(part(gained([spoken], rate, normalize=True), rate, at, at + 5), rate)
        - lufs(part(spoken, rate, at, at + 5), rate)
        for at in (5, 10, 15)
    ]
    assert max(ratio) - min(ratio) < 0.3


def test_noise_alone_is_not_made_louder() -> None:
    noise = pcm(0.0005 * np.random.default_rng(1).standard_normal(24000))
    assert gained([noise], 24000, normalize=True) == noise


def test_a_faint_recording_is_raised_by_20_db_at_most() -> None:
    faint = speech(24000, 4.0, level=0.01)
    raised = gained([faint], 24000, normalize=True)
    assert 19 < lufs(part(raised, 24000, 2, 4), 24000) - lufs(part(faint, 24000, 2, 4), 24000) <= 20.1


@settings(max_examples=40, deadline=None)
@given(
    rate=st.sampled_from([8000, 22050, 44100]),
    volume_db=st.floats(-20, 20),
    normalize=st.booleans(),
    samples=st.integers(0, 12000),
    borders=st.lists(st.integers(0, 12000), max_size=12),
)
def test_block_borders_do_not_show_and_no_sample_is_lost(
    rate: int, volume_db: float, normalize: bool, samples: int, borders: list[int]
) -> None:
    audio = speech(rate, 2.0, level=0.7)[: 2 * samples]
    expected = gained([audio], rate, volume_db, normalize=normalize)
    assert len(expected) == len(audio)
    assert gained(cut(audio, borders), rate, volume_db, normalize=normalize) == expected


@pytest.mark.parametrize("normalize", [True, False])
def test_ten_milliseconds_are_held_back(normalize: bool) -> None:
    rate = 44100
    gain = Gain(rate, 3.0, normalize_loudness=normalize)
    samples = speech(rate, 1.0)
    fed = given_back = 0
    for block in cut(samples, list(range(0, rate, 441))):
        fed += len(block)
        given_back += len(gain.feed(block))
        assert (fed - given_back) / 2 / rate < 0.0101


def test_volume_needs_no_pyav() -> None:
    runs_without_pyav(
        "from fishs2_daemon.audio.gain import Gain\ngain = Gain(24000, 6.0)\ngain.feed(bytes(480)); gain.flush()"
    )
