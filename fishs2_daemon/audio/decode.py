"""Audio files as samples, bounded: whatever the file claims, no more than `DecodeLimits.longest_s` is ever held.

FFmpeg reads the given file and nothing else: playlists and other formats that name further files are not among those
that are read, and a container's request for another file is refused.

A container's index can cost a thousand times its size before the first sample is out (1.8 KB of MP4 took 1.8 GB), and
nothing here bounds that. Files of strangers are probed in a process with little memory: `fishs2_daemon.voices.check`.
"""

import math
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from fishs2_daemon.errors import InvalidReferenceAudio, ReferenceAudioTooLong

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from av import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

#: Demuxers by FFmpeg's name, with the suffix of their files. None of them opens a second file by itself.
FORMATS = {
    "wav": ".wav", "flac": ".flac", "mp3": ".mp3", "ogg": ".ogg", "mov": ".m4a", "aac": ".aac", "matroska": ".webm",
    "aiff": ".aiff",
}  # fmt: skip

#: What is said of them to people.
_READABLE = "WAV, FLAC, MP3, Ogg, Opus, M4A, AAC, WebM and AIFF"

#: Decoders by FFmpeg's name: what people record with, and none of the hundreds that only an attacker would ask for.
_DECODERS = frozenset(
    {"pcm_u8", "pcm_s8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be"}
    | {"pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be", "pcm_alaw", "pcm_mulaw", "adpcm_ms", "adpcm_ima_wav"}
    | {"flac", "mp3", "mp3float", "opus", "libopus", "vorbis", "aac", "alac"}
)


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What is still a recording of a voice. Rates in Hz."""

    longest_s: float = 120.0
    channels: int = 8
    lowest_rate: int = 8_000
    highest_rate: int = 192_000


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """A file that decodes to its end; `suffix` is that of its format, whatever the file is called."""

    sample_rate: int
    channels: int
    duration_s: float
    suffix: str


@dataclass(frozen=True, slots=True)
class DecodedAudio:
    """`samples` are float32, mono, nominally within -1..1: [N]"""

    samples: "npt.NDArray[np.float32]"
    sample_rate: int


def probe(source: Path | bytes, *, limits: DecodeLimits, name: str | None = None) -> AudioInfo:
    """Decodes all of `source` and keeps none of it. Raises `InvalidReferenceAudio` that calls it `name`."""
    with _opened(source, limits, name or _name(source)) as audio:
        samples, rate, channels = 0, 0, 0
        for frame in audio.frames():
            _refuse_infinities(frame, audio.name)
            samples, rate, channels = samples + frame.samples, frame.sample_rate, frame.layout.nb_channels
        return AudioInfo(rate, channels, samples / rate, audio.suffix)


def decode(
    source: Path | bytes, *, sample_rate: int | None, limits: DecodeLimits, name: str | None = None
) -> DecodedAudio:
    """All of `source`, the mean of its channels, at `sample_rate` or at its own. Raises as `probe` does."""
    import numpy as np
    from av import AudioResampler

    with _opened(source, limits, name or _name(source)) as audio:
        resampler = AudioResampler(format="flt", rate=sample_rate)
        rate = 0
        blocks = []
        for frame in audio.frames():
            rate = sample_rate or frame.sample_rate
            frame.pts = None  # gaps in a file's clock are no silence
            blocks += [_mono(out) for out in resampler.resample(frame)]
        blocks += [_mono(out) for out in resampler.resample(None)]
        samples = np.concatenate(blocks) if blocks else np.empty(0, np.float32)
        if not len(samples):
            raise _no_audio(audio.name)
        if not np.isfinite(samples).all():
            raise _not_finite(audio.name)
        return DecodedAudio(samples, rate)


@dataclass(frozen=True, slots=True)
class _Audio:
    container: "InputContainer"
    stream: "AudioStream"
    limits: DecodeLimits
    name: str

    @property
    def suffix(self) -> str:
        if self.stream.codec_context.codec.name in ("opus", "libopus") and self.container.format.name == "ogg":
            return ".opus"
        return next(FORMATS[kind] for kind in self.container.format.name.split(",") if kind in FORMATS)

    def frames(self) -> Iterator["AudioFrame"]:
        """At least one. Raises where they end too late, or change their shape, or the file is broken."""
        shape = None
        samples = 0
        for frame in self.container.decode(self.stream):
            if shape is None:
                shape = frame.sample_rate, frame.layout.nb_channels
                _refuse_shape(*shape, self.limits, self.name)
            if (frame.sample_rate, frame.layout.nb_channels) != shape:
                raise InvalidReferenceAudio(f"{self.name}: the sample rate or the channels change midway")
            samples += frame.samples
            if samples > self.limits.longest_s * frame.sample_rate:
                raise ReferenceAudioTooLong(f"{self.name}: longer than {self.limits.longest_s:g} s")
            yield frame
        if not samples:
            raise _no_audio(self.name)


@contextmanager
def _opened(source: Path | bytes, limits: DecodeLimits, name: str) -> Iterator[_Audio]:
    import av

    options = {"format_whitelist": ",".join(FORMATS), "codec_whitelist": ",".join(sorted(_DECODERS))}
    try:
        file = BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    except OSError as error:
        raise InvalidReferenceAudio(f"{name}: cannot be opened ({error.strerror})") from None
    try:
        with file, _container(file, options) as container:
            yield _Audio(container, _audio_stream(container, limits, name), limits, name)
    except av.FFmpegError as error:
        reason = (error.strerror or "unreadable").lower()
        raise InvalidReferenceAudio(f"{name}: broken, or none of {_READABLE} ({reason})") from None


def _container(file: BinaryIO, options: dict[str, str]) -> "InputContainer":
    import av

    return av.open(file, "r", container_options=options, io_open=_refuse_other_files, metadata_errors="ignore")


def _audio_stream(container: "InputContainer", limits: DecodeLimits, name: str) -> "AudioStream":
    from av.stream import Disposition

    for video in container.streams.video:
        if not video.disposition & Disposition.attached_pic:  # covers are no video
            raise InvalidReferenceAudio(f"{name}: this is a video; send its sound alone")
    if not container.streams.audio:
        raise _no_audio(name)
    stream = container.streams.audio[0]
    codec = stream.codec_context
    if codec is None or codec.codec.name not in _DECODERS:
        raise InvalidReferenceAudio(f"{name}: its codec is not read; send {_READABLE}")
    # The header's word, before a sample is decoded; frames() holds the samples to the same.
    _refuse_shape(codec.sample_rate or limits.lowest_rate, codec.channels, limits, name)
    return stream


def _refuse_shape(sample_rate: int, channels: int, limits: DecodeLimits, name: str) -> None:
    if not limits.lowest_rate <= sample_rate <= limits.highest_rate:
        allowed = f"{limits.lowest_rate} to {limits.highest_rate} Hz"
        raise InvalidReferenceAudio(f"{name}: a sample rate of {sample_rate} Hz; allowed: {allowed}")
    if channels > limits.channels:
        raise InvalidReferenceAudio(f"{name}: {channels} channels; at most {limits.channels}")


def _mono(frame: "AudioFrame") -> "npt.NDArray[np.float32]":
    """The mean, where a mix by FFmpeg would be up to 3 dB louder than each of its channels. `frame` is packed."""
    import numpy as np

    packed = frame.to_ndarray().reshape(frame.samples, frame.layout.nb_channels)  # [N, channels]
    mean: npt.NDArray[np.float32] = packed.mean(axis=1, dtype=np.float32)
    return mean


def _refuse_infinities(frame: "AudioFrame", name: str) -> None:
    """Without numpy, which a daemon without the S2 engine does not have."""
    if frame.format.name.startswith(("flt", "dbl")):
        channels = frame.layout.nb_channels
        values = frame.samples * (1 if frame.format.is_planar else channels)
        for plane in frame.planes[:channels]:  # PyAV 18 lists a ninth, which is no memory, where there are eight
            # What stands behind the samples was never written.
            if not math.isfinite(sum(array("f" if frame.format.bytes == 4 else "d", bytes(plane))[:values])):
                raise _not_finite(name)


def _no_audio(name: str) -> InvalidReferenceAudio:
    return InvalidReferenceAudio(f"{name}: there is no audio in it")


def _not_finite(name: str) -> InvalidReferenceAudio:
    return InvalidReferenceAudio(f"{name}: holds samples that are no numbers")


def _refuse_other_files(url: str, flags: int, options: dict[str, Any]) -> NoReturn:
    raise PermissionError("a file that names other files")


def _name(source: Path | bytes) -> str:
    return source.name if isinstance(source, Path) else "the audio"
