"""From an engine's PCM to the bytes of an answer."""

from dataclasses import dataclass

from fishs2_daemon.audio.convert import PcmConverter
from fishs2_daemon.audio.encode import Encoder
from fishs2_daemon.audio.formats import Encoding
from fishs2_daemon.audio.gain import Gain
from fishs2_daemon.errors import InvalidRequest

#: OpenAI's bounds for speed, Fish Audio's for volume.
SPEEDS = (0.25, 4.0)
VOLUMES_DB = (-20.0, 20.0)


@dataclass(frozen=True, slots=True)
class Output:
    """What a client wants done to the audio. InvalidRequest, with `param`, for what is out of bounds.

    `hold_bytes` is how large an answer may be to come whole, 0 for a stream; see `Encoder`.
    """

    encoding: Encoding
    speed: float = 1.0
    volume_db: float = 0.0
    normalize_loudness: bool = False
    hold_bytes: int = 0

    def __post_init__(self) -> None:
        if not SPEEDS[0] <= self.speed <= SPEEDS[1]:
            raise InvalidRequest(f"speed is from {SPEEDS[0]:g} to {SPEEDS[1]:g}.", param="speed")
        if not VOLUMES_DB[0] <= self.volume_db <= VOLUMES_DB[1]:
            raise InvalidRequest(f"volume is from {VOLUMES_DB[0]:g} to {VOLUMES_DB[1]:g} dB.", param="volume")


class AudioChain:
    """Signed 16-bit mono PCM at `source_rate` through speed, sample rate, loudness, volume and the encoder.

    Loudness comes before volume, which would have no effect otherwise, and both come last, where the peaks are those
    of the answer. What is not asked costs nothing: without a change of speed, rate and loudness, wav and pcm never
    import PyAV. Making the first chain that does takes 0.2 s, any later one a few ms.
    """

    def __init__(self, source_rate: int, output: Output) -> None:
        self.content_type = output.encoding.format.content_type
        self.sample_rate = output.encoding.rate_for(source_rate)
        self._encoder = Encoder(output.encoding, self.sample_rate, hold_bytes=output.hold_bytes)
        self._converter = PcmConverter(source_rate, self.sample_rate, output.speed)
        self._gain = Gain(self.sample_rate, output.volume_db, normalize_loudness=output.normalize_loudness)

    def feed(self, samples: bytes) -> bytes:
        """The next bytes of the answer, often none; `samples` are whole samples."""
        return self._encoder.feed(self._gain.feed(self._converter.feed(samples)))

    def flush(self) -> bytes:
        """The rest, at the end of the stream. The chain is used up."""
        rest = self._gain.feed(self._converter.flush()) + self._gain.flush()
        return self._encoder.feed(rest) + self._encoder.flush()
