from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fishs2_daemon.audio.chain import AudioChain, Output
from fishs2_daemon.audio.formats import FORMATS, encoding
from fishs2_daemon.errors import InvalidRequest
from tests.audio.signals import cut, decoded, lag, likeness, lufs, pcm, pitch, runs_without_pyav, speech, waveform

PCM = Output(encoding("pcm"))


def answer(blocks: list[bytes], source_rate: int, output: Output) -> bytes:
    chain = AudioChain(source_rate, output)
    return b"".join([chain.feed(block) for block in blocks]) + chain.flush()


@pytest.mark.parametrize("speed", [0.5, 2.0])
@pytest.mark.parametrize("target_rate", [24000, 44100])
def test_speed_changes_the_length_and_leaves_the_pitch(speed: float, target_rate: int) -> None:
    t = np.arange(44100 * 2) / 44100
    tone = pcm(0.3 * np.sum([np.sin(2 * np.pi * 150 * harmonic * t) / harmonic for harmonic in range(1, 12)], axis=0))
    spoken = answer([tone], 44100, replace(PCM, encoding=encoding("pcm", target_rate), speed=speed))
    assert len(spoken) == 2 * round(2 * target_rate / speed)
    assert pitch(tone, 44100) == pytest.approx(150, rel=0.001)
    assert pitch(spoken, target_rate) == pytest.approx(150, rel=0.02)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_from_an_engines_rate(name: str) -> None:
    samples = speech(44100, 2.0)
    chain = AudioChain(44100, Output(encoding(name), hold_bytes=1 << 24))
    assert chain.content_type == FORMATS[name].content_type
    assert chain.feed(samples) == b""
    data = chain.flush()
    said, rate = (waveform(data), 44100) if name == "pcm" else decoded(data)
    assert rate == chain.sample_rate
    spoken = waveform(answer([samples], 44100, replace(PCM, encoding=encoding("pcm", rate))))
    assert likeness(said, spoken, lag(said, spoken)) > 0.99


def test_volume_is_what_is_heard_after_a_change_of_rate() -> None:
    samples = speech(44100, 3.0, level=0.1)
    plain = answer([samples], 44100, replace(PCM, encoding=encoding("pcm", 24000)))
    louder = answer([samples], 44100, replace(PCM, encoding=encoding("pcm", 24000), volume_db=6.0))
    assert lufs(louder, 24000) - lufs(plain, 24000) == pytest.approx(6, abs=0.05)


def test_loudness_comes_before_volume() -> None:
    samples = speech(44100, 6.0, level=0.1)
    loud = answer([samples], 44100, replace(PCM, normalize_loudness=True, volume_db=-4.0))
    assert lufs(loud, 44100) == pytest.approx(-22, abs=1)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(FORMATS)),
    speed=st.sampled_from([0.25, 0.9, 1.0, 1.7]),
    volume_db=st.sampled_from([0.0, -7.5, 11.0]),
    normalize=st.booleans(),
    hold_bytes=st.sampled_from([0, 1 << 20]),
    borders=st.lists(st.integers(0, 11025), max_size=12),
)
def test_block_borders_do_not_show(
    name: str, speed: float, volume_db: float, normalize: bool, hold_bytes: int, borders: list[int]
) -> None:
    samples = speech(22050, 0.5)
    output = Output(encoding(name), speed, volume_db, normalize, hold_bytes)
    assert answer(cut(samples, borders), 22050, output) == answer([samples], 22050, output)


@pytest.mark.parametrize("name", FORMATS)
def test_an_empty_answer_is_no_error(name: str) -> None:
    for hold_bytes in (0, 1 << 20):
        answer([], 22050, Output(encoding(name), 1.5, 3.0, True, hold_bytes))


@pytest.mark.parametrize(
    ("speed", "volume_db", "param", "allowed"),
    [
        (0.24, 0.0, "speed", "0.25 to 4"),
        (4.1, 0.0, "speed", "0.25 to 4"),
        (float("nan"), 0.0, "speed", "0.25 to 4"),
        (1.0, -20.5, "volume", "-20 to 20"),
        (1.0, 20.5, "volume", "-20 to 20"),
        (1.0, float("nan"), "volume", "-20 to 20"),
    ],
)
def test_what_is_out_of_bounds_is_named(speed: float, volume_db: float, param: str, allowed: str) -> None:
    with pytest.raises(InvalidRequest, match=allowed) as refusal:
        replace(PCM, speed=speed, volume_db=volume_db)
    assert refusal.value.param == param


def test_what_is_not_asked_costs_nothing() -> None:
    runs_without_pyav(
        "from fishs2_daemon.audio.chain import AudioChain, Output\n"
        "from fishs2_daemon.audio.formats import encoding\n"
        "block = bytes(480)\n"
        "chain = AudioChain(44100, Output(encoding('pcm')))\n"
        "assert chain.feed(block) == block and chain.flush() == b''\n"
        "chain = AudioChain(44100, Output(encoding('wav'), volume_db=3.0))\n"
        "assert len(chain.feed(block) + chain.flush()) == 44 + 480"
    )
