"""Every format as it comes through the door, decoded and compared with what was spoken."""

import json
from typing import Any

import pytest

from fishs2_daemon.audio.formats import FORMATS
from tests.adapters.openai.harness import RATE, Answer, Running
from tests.audio.signals import decoded, lag, likeness, lufs, speech, waveform

SECONDS = 2.0
SAID = speech(RATE, SECONDS)

#: What the decoder gives, and how many samples of silence a stream has in front (whole: none).
RATES = {"wav": RATE, "flac": RATE, "pcm": 24000, "mp3": RATE, "opus": 48000, "aac": 44100}
DELAYS = {"mp3": 1105, "aac": 1024}


@pytest.fixture(autouse=True)
def _speech(running: Running) -> None:
    running.service.blocks, running.service.block_samples = 100, len(SAID) // 200
    running.service.block = lambda number: SAID[number * len(SAID) // 100 : (number + 1) * len(SAID) // 100]


async def ask(running: Running, **fields: Any) -> Answer:
    """Over HTTP/1.0, where a stream is the bytes as they are."""
    body = json.dumps({"model": "tts-1", "input": "Hi", **fields}).encode()
    head = f"POST /v1/audio/speech HTTP/1.0\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    return Answer.parse(await running.exchange(head.encode() + body, timeout_s=20))


def heard(answer: Answer, name: str) -> tuple[Any, int]:
    return (waveform(answer.body), 24000) if name == "pcm" else decoded(answer.body)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", FORMATS)
async def test_format(running: Running, name: str, stream: bool) -> None:
    answer = await ask(running, response_format=name, stream=stream)
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == FORMATS[name].content_type
    assert answer.headers["content-disposition"] == f'attachment; filename="speech.{name}"'
    assert ("content-length" in answer.headers) is not stream
    assert answer.headers.get("x-accel-buffering") == ("no" if stream else None)
    wave, rate = heard(answer, name)
    assert rate == RATES[name]
    delay = DELAYS.get(name, 0) if stream or name == "aac" else 0
    frame = 1152 if stream or name == "aac" else 0
    assert 0 <= len(wave) - delay - round(SECONDS * rate) <= frame
    if rate == RATE:
        spoken = waveform(SAID)
        behind = lag(wave, spoken)
        assert abs(behind - delay) <= 1
        assert likeness(wave, spoken, behind) > (0.98 if FORMATS[name].bit_rate_kbps else 0.99999)
    else:
        assert abs(wave[delay:]).max() == pytest.approx(abs(waveform(SAID)).max(), rel=0.15)


@pytest.mark.parametrize(("name", "rate"), [("wav", 8000), ("pcm", 44100), ("mp3", 44100), ("flac", 48000)])
async def test_sample_rate(running: Running, name: str, rate: int) -> None:
    answer = await ask(running, response_format=name, sample_rate=rate)
    if name == "pcm":
        assert len(answer.body) == pytest.approx(2 * SECONDS * rate, abs=4)
    else:
        wave, told = decoded(answer.body)
        assert told == rate
        assert len(wave) == pytest.approx(SECONDS * rate, abs=2)


async def test_speed_is_applied_once_and_before_the_encoder(running: Running) -> None:
    answer = await ask(running, response_format="flac", speed=2, prosody={"speed": 2, "volume": 0})
    assert len(decoded(answer.body)[0]) == pytest.approx(RATE * SECONDS / 2, abs=2)


async def test_volume_and_loudness(running: Running) -> None:
    plain = await ask(running)
    quiet = await ask(running, prosody={"volume": -6})
    assert lufs(quiet.body[44:], RATE) == pytest.approx(lufs(plain.body[44:], RATE) - 6, abs=0.1)
    levelled = await ask(running, prosody={"normalize_loudness": True})
    lower = await ask(running, prosody={"normalize_loudness": True, "volume": -10})
    assert lufs(levelled.body[44:], RATE) != pytest.approx(lufs(plain.body[44:], RATE), abs=0.5)
    assert lufs(lower.body[44:], RATE) == pytest.approx(lufs(levelled.body[44:], RATE) - 10, abs=0.3)


async def test_a_whole_wav_has_exact_sizes(running: Running) -> None:
    answer = await ask(running)
    size = int.from_bytes(answer.body[40:44], "little")
    assert (size, int.from_bytes(answer.body[4:8], "little")) == (len(SAID), len(SAID) + 36)
    assert answer.body[44:] == SAID
