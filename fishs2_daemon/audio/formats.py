"""The audio formats a client may ask for, and the sample and bit rates each may have."""

from collections.abc import Mapping
from dataclasses import dataclass

from fishs2_daemon.errors import InvalidRequest

#: Every rate that MPEG audio layer III and ADTS both have a code for; what is asked of the others is held to it too.
_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)

#: What libopus takes. A decoder's output is at 48 kHz whatever went in.
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)

#: Opus at a bit rate of the encoder's own choice, as Fish Audio's API writes it.
AUTO_KBPS = -1000


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """`rates` are the sample rates that may be asked for, by bit rate in kbit/s; a format without bit rates has them
    under None. `own_rates` are those chosen from when none is asked: the ones whose first bytes come within 60 ms of
    audio. Where it is empty the source's rate stays. `encoder` and `muxer` are FFmpeg's names, None where none is used.
    """

    name: str
    content_type: str
    rates: Mapping[int | None, tuple[int, ...]]
    bit_rate_kbps: int | None = None
    own_rates: tuple[int, ...] = ()
    encoder: str | None = None
    muxer: str | None = None


FORMATS: Mapping[str, AudioFormat] = {
    audio.name: audio
    for audio in (
        AudioFormat("wav", "audio/wav", {None: _RATES}),
        AudioFormat(
            "mp3",
            "audio/mpeg",
            # MPEG-2.5 (below 16 kHz) ends at 64 kbit/s, MPEG-2 (below 32 kHz) at 160.
            {64: _RATES, 128: _RATES[3:], 192: _RATES[6:]},
            128,
            # LAME looks ahead by samples, not by time: 16 and 32 kHz need 72 ms for the first frame.
            (22050, 24000, 44100, 48000),
            "libmp3lame",
            "mp3",
        ),
        AudioFormat(
            "opus",
            "audio/ogg",
            dict.fromkeys((AUTO_KBPS, 24, 32, 48, 64), _OPUS_RATES),
            32,
            _OPUS_RATES,
            "libopus",
            "ogg",
        ),
        # The encoder looks one frame of 1024 samples ahead.
        AudioFormat("aac", "audio/aac", {96: _RATES}, 96, (44100, 48000), "aac", "adts"),
        AudioFormat("flac", "audio/flac", {None: _RATES}, encoder="flac", muxer="flac"),
        AudioFormat("pcm", "audio/pcm", {None: _RATES}),
    )
}


@dataclass(frozen=True, slots=True)
class Encoding:
    """A format with the rates that were settled before the source's rate is known; `sample_rate` None leaves it open.

    `bit_rate_kbps` is None where the format has no bit rate, `AUTO_KBPS` where the encoder chooses.
    """

    format: AudioFormat
    sample_rate: int | None
    bit_rate_kbps: int | None

    def rate_for(self, source_rate: int) -> int:
        """The sample rate of the answer: what was asked, else the lowest fit one that loses nothing of the source."""
        if self.sample_rate is not None:
            return self.sample_rate
        if not self.format.own_rates:
            return source_rate
        fit = [rate for rate in self.format.own_rates if rate in self.format.rates[self.bit_rate_kbps]]
        return min((rate for rate in fit if rate >= source_rate), default=fit[-1])


def encoding(name: str, sample_rate: int | None = None, bit_rate_kbps: int | None = None) -> Encoding:
    """The format `name` at the asked rates, None for its own. InvalidRequest, with `param` one of "format",
    "sample_rate" and "bit_rate", names what is allowed."""
    audio = FORMATS.get(name)
    if audio is None:
        raise InvalidRequest(f"The audio format is one of {', '.join(FORMATS)}.", param="format")
    if bit_rate_kbps is not None and bit_rate_kbps not in audio.rates:
        allowed = [f"{rate}" for rate in audio.rates if rate is not None]
        text = (
            f"The bit rate of {name} is one of {', '.join(allowed)} kbit/s." if allowed else f"{name} has no bit rate."
        )
        raise InvalidRequest(text, param="bit_rate")
    if bit_rate_kbps is None:
        bit_rate_kbps = audio.bit_rate_kbps
        if sample_rate is not None and sample_rate not in audio.rates[bit_rate_kbps]:
            fit = [kbps for kbps, rates in audio.rates.items() if kbps is not None and sample_rate in rates]
            bit_rate_kbps = max(fit, default=bit_rate_kbps)
    if sample_rate is not None and sample_rate not in audio.rates[bit_rate_kbps]:
        at = f" at {bit_rate_kbps} kbit/s" if len(set(audio.rates.values())) > 1 else ""
        listed = ", ".join(f"{rate}" for rate in audio.rates[bit_rate_kbps])
        raise InvalidRequest(f"The sample rate of {name}{at} is one of {listed} Hz.", param="sample_rate")
    return Encoding(audio, sample_rate, bit_rate_kbps)


def require_encoder(audio: AudioFormat) -> None:
    """InvalidRequest where PyAV was built without what the format needs; imports PyAV for all but wav and pcm."""
    if not _is_built(audio):
        built = ", ".join(name for name, other in FORMATS.items() if _is_built(other))
        raise InvalidRequest(
            f"{audio.name} is not available: PyAV was built without {audio.encoder}. Available: {built}.",
            param="format",
        )


def _is_built(audio: AudioFormat) -> bool:
    if audio.encoder is None or audio.muxer is None:
        return True
    import av

    try:
        av.Codec(audio.encoder, "w")
        av.ContainerFormat(audio.muxer, "w")
    except ValueError:
        return False
    return True
