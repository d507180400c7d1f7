import io
import struct
import wave

import pytest

from fishs2_daemon.audio.wav import header


@pytest.mark.parametrize("rate", [8000, 22050, 24000, 44100])
def test_whole_header_is_what_wave_reads(rate: int) -> None:
    samples = struct.pack("<4h", 0, 1, -1, 32767)
    with wave.open(io.BytesIO(header(rate, len(samples)) + samples)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, rate)
        assert file.getnframes() == 4
        assert file.readframes(4) == samples


def test_streamed_header_has_open_lengths() -> None:
    data = header(22050, None)
    assert len(data) == 44
    assert data[4:8] == data[40:44] == b"\xff\xff\xff\xff"
