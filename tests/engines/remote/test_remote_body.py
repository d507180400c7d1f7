"""WAV and PCM as they come over the wire."""

import struct
from array import array
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fishs2_daemon.audio import wav
from fishs2_daemon.engines.remote.body import Body, PcmBody, WavBody
from fishs2_daemon.engines.remote.errors import BrokenBody
from fishs2_daemon.engines.remote.sse import SseBody, body_of
from tests.engines.remote.server import TONE, wav_of


def fed(body: Body, data: bytes, cuts: list[int]) -> bytes:
    borders = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    samples = b"".join(body.feed(data[start:end]) for start, end in pairwise(borders))
    body.end()
    return samples


def head(kind: int, channels: int, bits: int, *, rate: int = 22050, before: bytes = b"", length: int = 0) -> bytes:
    width = channels * bits // 8
    fmt = struct.pack("<HHIIHH", kind, channels, rate, rate * width, width, bits)
    return (
        b"RIFF\xff\xff\xff\xffWAVE"
        + before
        + b"fmt "
        + struct.pack("<I", 16)
        + fmt
        + b"data"
        + struct.pack("<I", length)
    )


@given(st.lists(st.integers(0, 200), max_size=8), st.booleans())
def test_a_wav_is_the_same_however_it_is_cut(cuts: list[int], open_length: bool) -> None:
    body = WavBody()
    assert fed(body, wav_of(TONE[:100], open_length=open_length), cuts) == TONE[:100]
    assert body.sample_rate == 22050


@given(st.lists(st.integers(0, 200), max_size=8))
def test_half_a_sample_waits_for_its_other_half(cuts: list[int]) -> None:
    assert fed(PcmBody(), TONE[:100], cuts) == TONE[:100]


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=4))
def test_any_bytes_are_samples_or_an_error(data: bytes, cuts: list[int]) -> None:
    for body in (WavBody(), PcmBody()):
        try:
            samples = fed(body, data, cuts)
        except BrokenBody:
            continue
        assert len(samples) % 2 == 0
        assert len(samples) <= len(data)


@given(st.binary(max_size=60), st.binary(max_size=100))
def test_a_damaged_head_is_samples_or_an_error(chunk: bytes, rest: bytes) -> None:
    body = WavBody()
    try:
        samples = body.feed(b"RIFF\0\0\0\0WAVE" + chunk + wav.header(22050, None)[12:] + rest)
        body.end()
    except BrokenBody:
        return
    assert len(samples) % 2 == 0


@pytest.mark.parametrize("length", [0, 0x7FFFFFFF, 0x7FFFFFFF - 36, 0xFFFFFFFF, 0xFFFFFFFF - 36])
def test_an_open_length_is_written_in_several_ways(length: int) -> None:
    assert fed(WavBody(), head(1, 1, 16, length=length) + TONE, []) == TONE


def test_chunks_before_the_samples_are_skipped_and_those_behind_are_no_sound() -> None:
    before = b"LIST" + struct.pack("<I", 5) + b"INFO!\0"
    data = head(1, 1, 16, before=before, length=len(TONE)) + TONE + b"LIST\4\0\0\0abcd"
    for cuts in ([], [13, 20, 47], list(range(len(data)))):
        assert fed(WavBody(), data, cuts) == TONE


def test_floats_and_two_channels_become_16_bit_mono() -> None:
    floats = array("f", [0.0, 0.5, -0.5, 1.0, -1.0, 4.0, -4.0]).tobytes()
    expected = [0, 16384, -16384, 32767, -32767, 32767, -32768]
    assert list(array("h", fed(WavBody(), head(3, 1, 32) + floats, [61, 62]))) == expected
    stereo = array("h", [100, 300, -7, -7, 32767, 32767]).tobytes()
    assert list(array("h", fed(WavBody(), head(1, 2, 16) + stereo, [45, 47, 50]))) == [200, -7, 32767]


def test_the_extensible_format_says_in_its_guid_what_it_is() -> None:
    fmt = struct.pack("<HHIIHHHHI", 0xFFFE, 1, 22050, 44100, 2, 16, 22, 16, 4) + struct.pack("<H", 1) + bytes(14)
    data = b"RIFF\0\0\0\0WAVEfmt " + struct.pack("<I", len(fmt)) + fmt + b"data\0\0\0\0" + TONE
    assert fed(WavBody(), data, []) == TONE


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"<html>", "no WAV"),
        (b"RIFF\0\0\0\0AVI ", "no WAV"),
        (b"RIFF\0\0\0\0WAVEdata\0\0\0\0", "does not say what it holds"),
        (head(1, 1, 24), "format 1, 24 bits, 1 channels"),
        (head(1, 6, 16), "6 channels"),
        (head(85, 1, 16), "format 85"),
        (head(1, 1, 16, rate=0), "sample rate is 0 Hz"),
        (head(1, 1, 16, rate=2_000_000_000), "sample rate is 2000000000 Hz"),
        (b"RIFF\0\0\0\0WAVELIST\xff\xff\xff\x7f", "more than 65536 bytes"),
        (b"RIFF\0\0\0\0WAVE" + b"junk\0\0\0\0" * 9000, "more than 65536 bytes"),
        (head(3, 1, 32) + array("f", [float("nan")]).tobytes(), "no numbers"),
        (wav_of(TONE)[:30], "within its WAV head"),
        (wav_of(TONE, open_length=False)[:-10], "10 bytes early"),
    ],
)
def test_what_is_wrong_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(BrokenBody, match=reason):
        fed(WavBody(), data, [])


@pytest.mark.parametrize(
    ("headers", "asked", "kind", "rate"),
    [
        ({"content-type": "audio/wav"}, "pcm", WavBody, 0),
        ({"content-type": "Audio/X-WAV; charset=x"}, "wav", WavBody, 0),
        ({"content-type": "audio/pcm"}, "wav", PcmBody, 24000),
        ({"content-type": "audio/pcm", "x-sample-rate": "44100", "x-channels": "1"}, "pcm", PcmBody, 44100),
        ({"content-type": "application/octet-stream"}, "pcm", PcmBody, 24000),
        ({}, "wav", WavBody, 0),
        ({"content-type": "text/event-stream; charset=utf-8"}, "wav", SseBody, 0),
    ],
)
def test_the_content_type_tells_what_it_is(headers: dict[str, str], asked: str, kind: type, rate: int) -> None:
    body = body_of(headers, asked)
    assert isinstance(body, kind)
    assert body.sample_rate == rate


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"content-type": "audio/mpeg"}, "'audio/mpeg', not wav"),
        ({"content-type": "application/json"}, "'application/json', not wav"),
        ({"content-type": "audio/wav", "content-encoding": "gzip"}, "compressed"),
        ({"content-type": "audio/pcm", "x-channels": "2"}, "not 16-bit mono"),
        ({"content-type": "audio/pcm", "x-bit-depth": "32"}, "not 16-bit mono"),
        ({"content-type": "audio/pcm", "x-sample-rate": "many"}, "sample rate is 'many'"),
        ({"content-type": "audio/pcm", "x-sample-rate": "1"}, "sample rate is 1 Hz"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_head(headers: dict[str, str], reason: str) -> None:
    with pytest.raises(BrokenBody, match=reason):
        body_of(headers, "wav")
