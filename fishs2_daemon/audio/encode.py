"""PCM into the bytes of an audio format."""

import contextlib
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol, cast

from fishs2_daemon.audio import wav
from fishs2_daemon.audio.formats import AUTO_KBPS, Encoding, require_encoder
from fishs2_daemon.errors import SynthesisError

if TYPE_CHECKING:
    from av import AudioStream

_SAMPLE_BYTES = 2

#: FLAC's own choice is up to 105 ms, which the first block would wait for.
_FLAC_BLOCKS_PER_S = 40

#: Without versions and random stream numbers in them, the same audio has the same bytes.
_MUXER = {"fflags": "+bitexact"}
_WHOLE_MUXER = {
    "mp3": {"id3v2_version": "0"},
    "flac": {"metadata_header_padding": "0"},
}
_STREAM_MUXER = {
    "mp3": {"id3v2_version": "0", "write_xing": "0"},
    "ogg": {"page_duration": "20000"},  # µs; its own second is what a listener would wait for
    "flac": {"metadata_header_padding": "0"},
}
_SAMPLE_FORMAT = {"libmp3lame": "s16p", "libopus": "s16", "aac": "fltp", "flac": "s16"}


class Encoder:
    """Signed 16-bit mono PCM of `sample_rate`, one that the encoding allows, in; bytes of the format out.

    Streamed, the default, bytes leave as soon as the format can say them; its head says that the length is unknown.
    With `hold_bytes` the answer is to come whole: nothing leaves before `flush`, and the head has the true lengths
    (wav, flac with its MD5, mp3's Xing frame with delay and padding). An answer of more bytes than that is too large
    to hold: what was held leaves, the rest is streamed, and the head keeps its open lengths.

    The bytes depend on the samples, never on the block borders. Decoders give the samples back in number and place,
    but for the streamed mp3 and for aac, which cannot say how many samples to drop: 1105 samples (mp3) or 1024 (aac)
    of silence come first, and the last frame is filled up.

    All but wav and pcm import PyAV, which takes 0.2 s, and raise InvalidRequest where it lacks the encoder.
    SynthesisError: the encoder failed.
    """

    def __init__(self, encoding: Encoding, sample_rate: int, *, hold_bytes: int = 0) -> None:
        self._hold_bytes = hold_bytes
        self._file = _File(seekable=hold_bytes > 0)
        self._writer = _writer(encoding, sample_rate, self._file)

    def feed(self, samples: bytes) -> bytes:
        """What can be said so far; `samples` are whole samples."""
        self._writer.write(samples)
        if len(self._file) <= self._hold_bytes:
            return b""
        held = self._file.take()
        if self._hold_bytes:
            self._hold_bytes = 0
            return self._writer.with_open_lengths(held)
        return held

    def flush(self) -> bytes:
        """The rest, at the end of the stream. The encoder is used up."""
        self._writer.end()
        return self._file.take()


class _Writer(Protocol):
    def write(self, samples: bytes) -> None: ...

    def end(self) -> None: ...

    def with_open_lengths(self, held: bytes) -> bytes:
        """The start of what was to be a whole file, now that its head is not going to be rewritten."""
        ...


class _File:
    """The file a writer thinks it writes. What was taken is gone: rewriting it is heard and forgotten."""

    def __init__(self, *, seekable: bool) -> None:
        self._seekable = seekable
        self._kept = bytearray()
        self._taken = 0
        self._position = 0

    def __len__(self) -> int:
        return len(self._kept)

    def write(self, data: bytes) -> int:
        start = self._position - self._taken
        self._position += len(data)
        late = data[max(0, -start) :]
        start = max(0, start)
        self._kept[start : start + len(late)] = late
        return len(data)

    def seekable(self) -> bool:
        return self._seekable

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._taken + len(self._kept))[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def take(self) -> bytes:
        taken = bytes(self._kept)
        self._taken += len(taken)
        self._kept.clear()
        return taken


class _PcmWriter:
    def __init__(self, file: _File) -> None:
        self._file = file

    def write(self, samples: bytes) -> None:
        self._file.write(samples)

    def end(self) -> None:
        pass

    def with_open_lengths(self, held: bytes) -> bytes:
        return held


class _WavWriter(_PcmWriter):
    def __init__(self, file: _File, sample_rate: int) -> None:
        super().__init__(file)
        self._sample_rate = sample_rate
        self._data_bytes = 0
        file.write(wav.header(sample_rate, None))

    def write(self, samples: bytes) -> None:
        self._data_bytes += len(samples)
        super().write(samples)

    def end(self) -> None:
        if self._file.seekable():
            self._file.seek(0)
            self._file.write(wav.header(self._sample_rate, self._data_bytes))


class _PyavWriter:
    def __init__(self, file: _File, sample_rate: int, encoding: Encoding, encoder: str, muxer: str) -> None:
        import av

        self._av = av
        self._name = encoding.format.name
        self._rate = sample_rate
        self._time_base = Fraction(1, sample_rate)
        self._pts = 0
        streamed = not file.seekable()
        options = {**_MUXER, "flush_packets": "1", **(_STREAM_MUXER if streamed else _WHOLE_MUXER).get(muxer, {})}
        try:
            self._container = av.open(file, "w", format=muxer, options=options)
            encoder_options = _encoder_options(encoder, sample_rate, streamed)
            stream = self._container.add_stream(encoder, rate=sample_rate, layout="mono", options=encoder_options)
            self._stream = cast("AudioStream", stream)
            context = self._stream.codec_context
            context.format = _SAMPLE_FORMAT[encoder]
            if encoding.bit_rate_kbps is not None and encoding.bit_rate_kbps != AUTO_KBPS:
                context.bit_rate = 1000 * encoding.bit_rate_kbps
            self._container.start_encoding()
        except av.FFmpegError as error:
            raise self._failed(error) from error

    def write(self, samples: bytes) -> None:
        if not samples:
            return
        frame = self._av.AudioFrame(format="s16", layout="mono", samples=len(samples) // _SAMPLE_BYTES)
        frame.planes[0].update(samples)
        frame.sample_rate = self._rate
        frame.time_base = self._time_base
        frame.pts = self._pts
        self._pts += frame.samples
        try:
            self._container.mux(self._stream.encode(frame))
        except self._av.FFmpegError as error:
            raise self._failed(error) from error

    def end(self) -> None:
        try:
            self._container.mux(self._stream.encode(None))
            self._container.close()
        except self._av.FFmpegError as error:
            raise self._failed(error) from error

    def with_open_lengths(self, held: bytes) -> bytes:
        # Xing's flags say which fields follow. Zeros in the fields would say that the file has no frames.
        return held.replace(b"Xing\0\0\0\x0f", b"Xing\0\0\0\0", 1) if self._name == "mp3" else held

    def __del__(self) -> None:
        # A container that was given up is a ring of references: 10 MB of FLAC's would wait for the garbage collector.
        if hasattr(self, "_container"):
            with contextlib.suppress(self._av.FFmpegError):
                self._container.close()

    def _failed(self, error: Exception) -> SynthesisError:
        return SynthesisError(f"The {self._name} encoder failed: {error}")


def _writer(encoding: Encoding, sample_rate: int, file: _File) -> _Writer:
    audio = encoding.format
    if audio.encoder is not None and audio.muxer is not None:
        require_encoder(audio)
        return _PyavWriter(file, sample_rate, encoding, audio.encoder, audio.muxer)
    return _WavWriter(file, sample_rate) if audio.name == "wav" else _PcmWriter(file)


def _encoder_options(encoder: str, sample_rate: int, streamed: bool) -> dict[str, str]:
    if encoder == "libmp3lame":
        # A third faster than LAME's own choice; what that saves in bits is not needed at 64 kbit/s for one voice.
        options = {"compression_level": "7"}
        # A frame that leans on earlier ones is held back until they are full, and does not decode without them.
        return {**options, "reservoir": "0"} if streamed else options
    if encoder == "flac" and streamed:
        return {"frame_size": f"{sample_rate // _FLAC_BLOCKS_PER_S}"}
    return {}
