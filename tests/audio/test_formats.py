import av
import pytest

from fishs2_daemon.audio import formats
from fishs2_daemon.audio.encode import Encoder
from fishs2_daemon.audio.formats import AUTO_KBPS, FORMATS, encoding
from fishs2_daemon.errors import InvalidRequest
from tests.audio.signals import runs_without_pyav


def test_content_types() -> None:
    assert {name: audio.content_type for name, audio in FORMATS.items()} == {
        "wav": "audio/wav",
        "mp3": "audio/mpeg",
        "opus": "audio/ogg",
        "aac": "audio/aac",
        "flac": "audio/flac",
        "pcm": "audio/pcm",
    }


@pytest.mark.parametrize(
    ("name", "source_rate", "chosen"),
    [
        ("wav", 44100, 44100),
        ("pcm", 22050, 22050),
        ("flac", 20000, 20000),
        ("mp3", 44100, 44100),
        ("mp3", 22050, 22050),
        ("mp3", 16000, 22050),
        ("mp3", 32000, 44100),
        ("mp3", 96000, 48000),
        ("opus", 44100, 48000),
        ("opus", 22050, 24000),
        ("opus", 16000, 16000),
        ("aac", 24000, 44100),
        ("aac", 48000, 48000),
    ],
)
def test_the_rate_nobody_asked_for_loses_nothing_of_the_source(name: str, source_rate: int, chosen: int) -> None:
    assert encoding(name).rate_for(source_rate) == chosen


@pytest.mark.parametrize(
    ("name", "sample_rate", "bit_rate_kbps", "settled"),
    [
        ("mp3", None, None, 128),
        ("mp3", 8000, None, 64),
        ("mp3", 44100, 192, 192),
        ("opus", None, None, 32),
        ("opus", 24000, AUTO_KBPS, AUTO_KBPS),
        ("aac", 48000, None, 96),
        ("wav", 8000, None, None),
    ],
)
def test_what_is_asked_stays(
    name: str, sample_rate: int | None, bit_rate_kbps: int | None, settled: int | None
) -> None:
    asked = encoding(name, sample_rate, bit_rate_kbps)
    assert asked.bit_rate_kbps == settled
    assert sample_rate is None or asked.rate_for(22050) == sample_rate


def test_a_bit_rate_takes_the_sample_rates_that_have_it() -> None:
    assert encoding("mp3", None, 192).rate_for(22050) == 44100


@pytest.mark.parametrize(
    ("name", "sample_rate", "bit_rate_kbps", "param", "allowed"),
    [
        ("m4a", None, None, "format", "wav, mp3, opus, aac, flac, pcm"),
        ("MP3", None, None, "format", "mp3"),
        ("mp3", None, 96, "bit_rate", "64, 128, 192 kbit/s"),
        ("opus", None, 128, "bit_rate", "-1000, 24, 32, 48, 64"),
        ("wav", None, 128, "bit_rate", "wav has no bit rate"),
        ("opus", 44100, None, "sample_rate", "8000, 12000, 16000, 24000, 48000 Hz"),
        ("mp3", 24000, 192, "sample_rate", "at 192 kbit/s is one of 32000, 44100, 48000 Hz"),
        ("mp3", 1, None, "sample_rate", "8000"),
        ("pcm", 0, None, "sample_rate", "48000"),
    ],
)
def test_a_refusal_names_the_field_and_what_is_allowed(
    name: str, sample_rate: int | None, bit_rate_kbps: int | None, param: str, allowed: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        encoding(name, sample_rate, bit_rate_kbps)
    assert refusal.value.param == param
    assert allowed in str(refusal.value)


@pytest.mark.parametrize("name", ["mp3", "opus", "aac", "flac"])
@pytest.mark.parametrize("lacking", ["Codec", "ContainerFormat"])
def test_an_encoder_that_was_not_built_is_named(monkeypatch: pytest.MonkeyPatch, name: str, lacking: str) -> None:
    audio = FORMATS[name]
    real = getattr(av, lacking)

    def without(asked: str, mode: str) -> object:
        if asked in (audio.encoder, audio.muxer):
            raise ValueError(asked)
        return real(asked, mode)

    monkeypatch.setattr(av, lacking, without)
    with pytest.raises(InvalidRequest, match=f"built without {audio.encoder}") as refusal:
        Encoder(encoding(name), 48000)
    assert refusal.value.param == "format"
    available = str(refusal.value).split("Available: ")[1].rstrip(".").split(", ")
    assert available == [other for other in FORMATS if other != name]


def test_a_lookup_of_pyav_that_fails_is_what_the_check_expects() -> None:
    with pytest.raises(ValueError):
        av.Codec("no-such-encoder", "w")
    with pytest.raises(ValueError):
        av.ContainerFormat("no-such-muxer", "w")


def test_every_sample_rate_of_the_table_encodes_at_every_bit_rate() -> None:
    for audio in FORMATS.values():
        for bit_rate_kbps, rates in audio.rates.items():
            for rate in rates:
                encoder = Encoder(encoding(audio.name, rate, bit_rate_kbps), rate)
                assert encoder.feed(bytes(2 * rate)) + encoder.flush()


def test_the_table_needs_no_pyav() -> None:
    runs_without_pyav(
        "from fishs2_daemon.audio import formats\n"
        "formats.encoding('mp3').rate_for(44100); formats.require_encoder(formats.FORMATS['wav'])"
    )


def test_a_plain_format_is_always_available() -> None:
    formats.require_encoder(FORMATS["pcm"])
