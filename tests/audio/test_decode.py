"""Reading audio files: every format, honest and hostile."""

import math
import socket
import struct
import subprocess
import sys
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fishs2_daemon.audio.decode import AudioInfo, DecodeLimits, decode, probe
from fishs2_daemon.errors import InvalidReferenceAudio, ReferenceAudioTooLong
from tests.voices.sounds import encoded, wav

LIMITS = DecodeLimits(longest_s=5)

KINDS = {
    ".wav": ("wav", "pcm_s24le"),
    ".flac": ("flac", "flac"),
    ".mp3": ("mp3", "libmp3lame"),
    ".opus": ("ogg", "libopus"),
    ".ogg": ("ogg", "flac"),
    ".m4a": ("mp4", "aac"),
    ".aac": ("adts", "aac"),
    ".webm": ("webm", "libopus"),
    ".aiff": ("aiff", "pcm_s16be"),
}


def float_wav(*samples: float) -> bytes:
    data = struct.pack(f"<{len(samples)}f", *samples)
    form = struct.pack("<HHIIHH", 3, 1, 8000, 32000, 4, 32)
    chunks = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def video() -> bytes:
    file = BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10, width=32, height=32)
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode(None))
    return file.getvalue()


def with_cover(mp3: bytes) -> bytes:
    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixel = part(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)) + part(b"IDAT", zlib.compress(b"\0\0"))
    image = b"\x89PNG\r\n\x1a\n" + pixel + part(b"IEND", b"")
    frame = b"\0image/png\0\3\0" + image
    tag = b"APIC" + struct.pack(">IH", len(frame), 0) + frame
    return b"ID3\3\0\0" + bytes(len(tag) >> shift & 127 for shift in (21, 14, 7, 0)) + tag + mp3


@pytest.mark.parametrize("suffix", KINDS)
def test_every_format_is_read(suffix: str) -> None:
    content = encoded(*KINDS[suffix])
    info = probe(content, limits=LIMITS)
    assert (info.sample_rate, info.channels, info.suffix) == (48_000, 1, suffix)
    assert info.duration_s == pytest.approx(1, abs=0.06)
    audio = decode(content, sample_rate=None, limits=LIMITS)
    assert (audio.sample_rate, audio.samples.dtype, audio.samples.ndim) == (48_000, np.float32, 1)
    assert len(audio.samples) == info.duration_s * 48_000
    loudness = math.sqrt(float(np.mean(audio.samples[4800:-4800] ** 2)))
    assert loudness == pytest.approx(0.25, rel=0.15)  # lossy codecs round the square wave


def test_a_path_is_read_like_bytes_and_named_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "anna.wav"
    path.write_bytes(wav())
    assert probe(path, limits=LIMITS) == AudioInfo(8000, 1, 1.0, ".wav")
    path.write_bytes(b"no sound")
    with pytest.raises(InvalidReferenceAudio, match=r"anna\.wav"):
        probe(path, limits=LIMITS)
    with pytest.raises(InvalidReferenceAudio, match=r"^gone\.wav: cannot be opened \(No such file"):
        decode(tmp_path / "gone.wav", sample_rate=None, limits=LIMITS)


def test_eight_channels_in_planes_are_read() -> None:
    content = encoded("mp4", "aac", layout="7.1")
    assert probe(content, limits=LIMITS).channels == 8
    assert np.isfinite(decode(content, sample_rate=8000, limits=LIMITS).samples).all()


def test_samples_are_the_files_own() -> None:
    audio = decode(float_wav(0.0, 0.5, -1.0, 0.25), sample_rate=None, limits=LIMITS)
    assert audio.samples.tolist() == [0.0, 0.5, -1.0, 0.25]


@pytest.mark.parametrize("channels", [2, 3, 6, 8])
def test_channels_become_their_mean(channels: int) -> None:
    mono, many = (decode(wav(channels=n), sample_rate=None, limits=LIMITS).samples for n in (1, channels))
    np.testing.assert_allclose(many, mono, atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 24_000, 44_100])
def test_another_rate_keeps_length_and_loudness(rate: int) -> None:
    audio = decode(wav(2.0, channels=2), sample_rate=rate, limits=LIMITS)
    assert audio.sample_rate == rate
    assert len(audio.samples) == pytest.approx(2 * rate, abs=2)
    assert math.sqrt(float(np.mean(audio.samples**2))) == pytest.approx(0.25, rel=0.05)


def test_half_an_hour_of_silence_in_a_small_file_costs_no_more_than_the_limit() -> None:
    bomb = encoded("flac", "flac", 1800, rate=8000, level=0)
    assert len(bomb) < 400_000
    tracemalloc.start()
    for read in (lambda: probe(bomb, limits=LIMITS), lambda: decode(bomb, sample_rate=None, limits=LIMITS)):
        with pytest.raises(ReferenceAudioTooLong, match="the audio: longer than 5 s"):
            read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000  # 5 s are 160 kB, half an hour would be 58 MB


def test_the_length_is_that_of_the_samples_whatever_the_header_claims() -> None:
    content = bytearray(wav(6.0))
    content[40:44] = struct.pack("<I", 0xFFFFFFFF)  # "until the end", as streams say
    with pytest.raises(ReferenceAudioTooLong):
        probe(bytes(content), limits=LIMITS)
    assert probe(bytes(content), limits=DecodeLimits(longest_s=6)).duration_s == 6


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "broken"),
        (b"not a sound at all" * 100, "broken"),
        (wav()[:40], "broken|no audio"),
        (wav(0), "broken|no audio"),
        (float_wav(), "broken|no audio"),
        (wav(rate=1_000_000), "1000000 Hz; allowed: 8000 to 192000 Hz"),
        (wav(rate=100), "100 Hz"),
        (wav(channels=64), "64 channels; at most 8"),
        (float_wav(0.1, math.nan), "no numbers"),
        (float_wav(math.inf, 0.2), "no numbers"),
        (float_wav(*[0.0] * 9000, -math.inf), "no numbers"),
        (encoded("adts", "aac", rate=44_100) + encoded("adts", "aac", rate=22_050), "change midway"),
        (encoded("flac", "flac")[:50], "broken|no audio"),
        (video(), "video"),
        (encoded("wav", "adpcm_yamaha", rate=44_100), "codec"),
        (encoded("caf", "pcm_s16be"), "broken"),
    ],
)
def test_what_is_no_clip_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(InvalidReferenceAudio, match=f"^x.wav: .*({reason})"):
        probe(content, limits=LIMITS, name="x.wav")
    with pytest.raises(InvalidReferenceAudio, match=f"^x.wav: .*({reason})"):
        decode(content, sample_rate=None, limits=LIMITS, name="x.wav")


def test_a_cover_is_no_video() -> None:
    assert probe(with_cover(encoded("mp3", "libmp3lame")), limits=LIMITS).suffix == ".mp3"


@pytest.mark.parametrize(
    "template",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{url}'\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
        '<Representation id="1" bandwidth="1"><BaseURL>{url}</BaseURL></Representation></AdaptationSet></Period></MPD>',
        "[Reference]\nRef1={url}\n",
    ],
)
def test_files_that_name_other_files_open_none_of_them(template: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.wav"
    secret.write_bytes(wav())
    with socket.create_server(("127.0.0.1", 0)) as server:
        for url in (f"http://127.0.0.1:{server.getsockname()[1]}/a.wav", f"file://{secret}", str(secret)):
            with pytest.raises(InvalidReferenceAudio):
                probe(template.format(url=url).encode(), limits=LIMITS)
        server.settimeout(0.05)
        with pytest.raises(TimeoutError):
            server.accept()


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_broken_files_are_read_or_refused(kind: str, data: st.DataObject) -> None:
    content = bytearray(_SAMPLES.setdefault(kind, encoded(*KINDS[kind], 0.3)))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    try:
        audio = decode(bytes(content), sample_rate=16_000, limits=LIMITS)
    except InvalidReferenceAudio:
        return
    assert 0 < len(audio.samples) <= 16_000 * 5 + 100
    assert np.isfinite(audio.samples).all()


_SAMPLES: dict[str, bytes] = {}


def test_the_module_is_imported_without_av_and_numpy() -> None:
    program = "import sys, fishs2_daemon.audio.decode; print([m for m in ('av', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout.strip() == b"[]"
