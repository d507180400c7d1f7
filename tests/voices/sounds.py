"""Real audio, made here."""

import io
import wave
from array import array

import av

#: A second of it is a square wave at a quarter of full scale.
RATE = 8000


def wav(duration_s: float = 1.0, *, level: int = 8192, rate: int = RATE, channels: int = 1) -> bytes:
    """PCM whose `level` tells one sound from another."""
    samples = array("h", [level if at // 20 % 2 else -level for at in range(round(duration_s * rate))])
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(array("h", [sample for sample in samples for _ in range(channels)]).tobytes())
    return file.getvalue()


def encoded(
    container: str, codec: str, duration_s: float = 1.0, *, rate: int = 48_000, level: int = 8192, layout: str = "mono"
) -> bytes:
    """The sound of `wav` in another format."""
    file = io.BytesIO()
    samples = array("h", [level if at // 100 % 2 else -level for at in range(round(duration_s * rate))])
    with av.open(file, "w", format=container) as writer:
        stream = writer.add_stream(codec, rate=rate, layout=layout)
        stream.codec_context.open()
        resampler = av.AudioResampler(
            stream.codec_context.format.name, layout, rate, frame_size=stream.codec_context.frame_size or 4096
        )
        frame = av.AudioFrame("s16", "mono", len(samples))
        frame.planes[0].update(samples.tobytes())
        frame.sample_rate, frame.pts = rate, 0
        for block in (*resampler.resample(frame), *resampler.resample(None)):
            writer.mux(stream.encode(block))
        writer.mux(stream.encode(None))
    return file.getvalue()
