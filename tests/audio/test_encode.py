import gc
import hashlib
import io
import wave
from typing import cast

import av
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fishs2_daemon.audio.encode import Encoder
from fishs2_daemon.audio.formats import FORMATS, encoding
from fishs2_daemon.errors import SynthesisError
from tests.audio.signals import Wave, cut, decoded, lag, likeness, runs_without_pyav, speech, waveform

CONTAINED = ["wav", "mp3", "opus", "aac", "flac"]
CODED = ["mp3", "opus", "aac", "flac"]
DEMUXERS = {"wav": "wav", "mp3": "mp3", "opus": "ogg", "aac": "aac", "flac": "flac"}

#: Samples of a codec frame, and the silence in front of what a decoder says, streamed and whole.
FRAME = {"wav": 1, "pcm": 1, "flac": 1, "mp3": 1152, "opus": 960, "aac": 1024}
STREAMED_LEAD = {"mp3": 1105, "aac": 1024}
WHOLE_LEAD = {"aac": 1024}

#: The least likeness to the source. The lossless ones are compared sample by sample.
LIKENESS = {"mp3": 0.999, "opus": 0.99, "aac": 0.995}
WHOLE = 1 << 24
RATE = 48000


def encode(name: str, blocks: list[bytes], rate: int = RATE, hold_bytes: int = 0) -> bytes:
    encoder = Encoder(encoding(name), rate, hold_bytes=hold_bytes)
    return b"".join([encoder.feed(block) for block in blocks]) + encoder.flush()


def heard(name: str, data: bytes) -> Wave:
    if name == "pcm":
        return waveform(data)
    said, rate = decoded(data)
    assert rate == RATE
    return said


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("hold_bytes", [0, WHOLE])
def test_what_is_heard_is_what_was_spoken(name: str, hold_bytes: int) -> None:
    samples = speech(RATE, 3.21)
    spoken = waveform(samples)
    said = heard(name, encode(name, [samples], hold_bytes=hold_bytes))
    lead = (WHOLE_LEAD if hold_bytes else STREAMED_LEAD).get(name, 0)
    assert abs(lag(said, spoken) - lead) <= 1
    assert 0 <= len(said) - lead - len(spoken) < FRAME[name]
    if name in LIKENESS:
        assert likeness(said, spoken, lead) > LIKENESS[name]
    else:
        assert np.array_equal(said, spoken)
    if lead:
        assert np.abs(said[: lead - 256]).max() < 0.01


@pytest.mark.parametrize("name", ["mp3", "opus"])
def test_a_whole_file_has_no_sample_too_many(name: str) -> None:
    samples = speech(RATE, 1.2345)
    assert len(heard(name, encode(name, [samples], hold_bytes=WHOLE))) == len(samples) // 2


@pytest.mark.parametrize("name", FORMATS)
def test_whole_and_streamed_sound_alike(name: str) -> None:
    samples = speech(RATE, 2.0)
    streamed = heard(name, encode(name, [samples]))[STREAMED_LEAD.get(name, 0) :]
    whole = heard(name, encode(name, [samples], hold_bytes=WHOLE))[WHOLE_LEAD.get(name, 0) :]
    assert likeness(streamed, whole) > (0.999 if name == "mp3" else 0.999999)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("hold_bytes", [0, WHOLE])
def test_block_borders_do_not_show(name: str, hold_bytes: int) -> None:
    samples = speech(RATE, 0.4)
    expected = encode(name, [samples], hold_bytes=hold_bytes)

    @settings(max_examples=15, deadline=None)
    @given(st.lists(st.integers(0, len(samples) // 2), max_size=25))
    def check(borders: list[int]) -> None:
        assert encode(name, cut(samples, borders), hold_bytes=hold_bytes) == expected

    check()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("hold_bytes", [0, WHOLE])
@pytest.mark.parametrize("count", [0, 1, 2, 500])
def test_almost_nothing(name: str, hold_bytes: int, count: int) -> None:
    data = encode(name, [b"", bytes(2 * count)], hold_bytes=hold_bytes)
    if count and name != "pcm":
        # A decoder takes two frames of mp3 and aac to begin.
        assert len(decoded(data)[0]) >= (0 if name in STREAMED_LEAD else count)
    assert name not in ("wav", "flac", "opus") or data


@pytest.mark.parametrize("name", FORMATS)
def test_the_first_audio_comes_within_60_ms_of_what_was_said(name: str) -> None:
    for source_rate in (16000, 22050, 24000, 44100):
        rate = encoding(name).rate_for(source_rate)
        encoder = Encoder(encoding(name), rate)
        step = rate // 1000
        data, fed = b"", 0
        while not first_audio(name, data):
            data += encoder.feed(np.full(step, 9999, "<i2").tobytes())
            fed += step
            assert fed / rate <= 0.060


def first_audio(name: str, data: bytes) -> int:
    """Samples that a decoder gives of these bytes. FFmpeg's demuxers of mp3 want two frames before they look."""
    if name == "pcm":
        return len(data) // 2
    if name not in ("mp3", "aac"):
        return len(decoded(data, DEMUXERS[name])[0])
    decoder = cast("av.AudioCodecContext", av.CodecContext.create(name, "r"))
    return sum(frame.samples for packet in decoder.parse(data) for frame in decoder.decode(packet))


@pytest.mark.parametrize("name", FORMATS)
def test_speech_sounds_within_60_ms_of_where_pcm_would(name: str) -> None:
    """The silence in front counts: PCM in blocks of 20 ms sounds after the first."""
    for source_rate in (16000, 22050, 24000, 44100):
        rate = encoding(name).rate_for(source_rate)
        encoder = Encoder(encoding(name), rate)
        tone = (np.sin(np.arange(rate) / rate * 2 * np.pi * 440) * 20000).astype("<i2").tobytes()
        data, at, sounds = b"", 0, False
        while not sounds:
            data += encoder.feed(tone[at : at + rate // 500 * 2])
            at += rate // 500 * 2
            said = waveform(data) if name == "pcm" else decoded(data, DEMUXERS[name])[0]
            sounds = len(said) > 0 and bool(np.abs(said).max() > 0.1)
            assert at / 2 / rate <= 0.080


@pytest.mark.parametrize("name", ["wav", "opus", "flac"])
def test_the_head_leaves_before_any_audio(name: str) -> None:
    head = Encoder(encoding(name), RATE).feed(b"")
    assert head.startswith({"wav": b"RIFF", "opus": b"OggS", "flac": b"fLaC"}[name])
    assert len(head) < 200


@pytest.mark.parametrize("name", CODED)
def test_bytes_follow_the_audio_closely(name: str) -> None:
    encoder = Encoder(encoding(name), RATE)
    samples = speech(RATE, 2.0, level=0.8)
    silent_s = 0.0
    for block in cut(samples, list(range(0, RATE * 2, RATE // 100))):
        silent_s = 0.0 if encoder.feed(block) else silent_s + 0.01
        assert silent_s <= 0.07


@pytest.mark.parametrize("name", CONTAINED)
def test_a_stream_that_breaks_off_anywhere_was_heard_until_there(name: str) -> None:
    samples = speech(RATE, 0.5)
    encoder = Encoder(encoding(name), RATE)
    blocks = [encoder.feed(block) for block in cut(samples, list(range(0, RATE, RATE // 50)))] + [encoder.flush()]
    data = b"".join(blocks)
    complete, _ = decoded(data)
    start = 0
    while len(decoded(data[:start], DEMUXERS[name])[0]) == 0:
        start += len(blocks.pop(0)) or 1
    before = 0
    for end in range(start, len(data), max(1, len(data) // 150)):
        said, _ = decoded(data[:end], DEMUXERS[name])
        # The last frames may lack their bytes; whatever came before them is there.
        sure = max(0, len(said) - 2 * 1152)
        assert sure >= before
        assert len(said) > 0
        assert np.allclose(said[:sure], complete[:sure], atol=1e-4)
        before = sure
    assert before > 0.7 * len(complete)


def test_whole_wav_has_its_length_and_streamed_wav_has_none() -> None:
    samples = speech(RATE, 0.3)
    with wave.open(io.BytesIO(encode("wav", [samples], hold_bytes=WHOLE))) as file:
        assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (RATE, 2, 1)
        assert file.readframes(file.getnframes()) == samples
        assert file.getnframes() == len(samples) // 2
    assert encode("wav", [samples])[40:44] == b"\xff" * 4


def test_whole_flac_has_its_length_and_checksum() -> None:
    samples = speech(RATE, 0.3)
    whole = encode("flac", [samples], hold_bytes=WHOLE)
    assert int.from_bytes(whole[21:26], "big") & (1 << 36) - 1 == len(samples) // 2
    assert whole[26:42] == hashlib.md5(samples).digest()
    assert encode("flac", [samples])[22:42] == bytes(20)


def test_whole_mp3_says_how_long_it_is_and_streamed_mp3_nothing() -> None:
    samples = speech(RATE, 0.3)
    whole = encode("mp3", [samples], hold_bytes=WHOLE)
    at = whole.index(b"Info" if b"Info" in whole[:64] else b"Xing")
    assert int.from_bytes(whole[at + 12 : at + 16], "big") == len(whole)
    streamed = encode("mp3", [samples])
    assert streamed[0] == 0xFF
    assert b"Xing" not in streamed
    assert b"Info" not in streamed


@pytest.mark.parametrize("name", FORMATS)
def test_an_answer_too_large_to_hold_goes_on_as_a_stream(name: str) -> None:
    samples = speech(RATE, 4.0)
    encoder = Encoder(encoding(name), RATE, hold_bytes=6000)
    blocks = [encoder.feed(block) for block in cut(samples, list(range(0, 4 * RATE, RATE // 50)))]
    sizes = [len(block) for block in blocks if block]
    data = b"".join(blocks) + encoder.flush()
    assert sizes[0] > 6000
    assert max(sizes[1:]) < 5000
    said, spoken = heard(name, data), waveform(samples)
    assert likeness(said, spoken, lag(said, spoken)) > LIKENESS.get(name, 0.999999)
    assert 0 <= len(said) - lag(said, spoken) - len(spoken) < FRAME[name]
    if name == "mp3":
        assert data[data.index(b"Xing") + 4 :][:4] == bytes(4)
    if name == "wav":
        assert data[40:44] == b"\xff" * 4


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("ended", [True, False])
def test_encoders_leave_no_memory_behind(name: str, ended: bool) -> None:
    samples = speech(RATE, 0.1)

    def use(times: int) -> int:
        for _ in range(times):
            encoder = Encoder(encoding(name), RATE)
            encoder.feed(samples)
            if ended:
                encoder.flush()
        return int(psutil.Process().memory_info().rss)

    gc.disable()
    try:
        before = use(20)
        assert use(80) - before < 4_000_000
    finally:
        gc.enable()


@pytest.mark.parametrize("moment", ["encode", "mux", "close"])
def test_an_encoder_that_fails_says_so(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    class Broken:
        def __init__(self, real: object) -> None:
            self._real = real

        def __getattr__(self, name: str) -> object:
            return getattr(self._real, name)

        def _fail(self, *_: object) -> None:
            raise av.FFmpegError(1, "broken")

    setattr(Broken, moment, Broken._fail)
    encoder = Encoder(encoding("mp3"), RATE)
    writer = vars(encoder)["_writer"]
    part = "_stream" if moment == "encode" else "_container"
    monkeypatch.setattr(writer, part, Broken(getattr(writer, part)))
    with pytest.raises(SynthesisError, match="mp3 encoder failed"):
        encoder.feed(bytes(2 * RATE)) + encoder.flush()


def test_an_encoder_that_does_not_open_says_so() -> None:
    with pytest.raises(SynthesisError, match="opus encoder failed"):
        Encoder(encoding("opus"), 44100)


def test_wav_and_pcm_need_no_pyav() -> None:
    runs_without_pyav(
        "from fishs2_daemon.audio.encode import Encoder\n"
        "from fishs2_daemon.audio.formats import encoding\n"
        "for name in ('wav', 'pcm'):\n"
        "    encoder = Encoder(encoding(name), 24000)\n"
        "    assert (encoder.feed(b'ab') + encoder.flush()).endswith(b'ab')\n"
    )
