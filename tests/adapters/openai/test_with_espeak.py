"""The door over the real service and its worker process."""

import asyncio
import base64
import io
import json
import wave
from pathlib import Path

import httpx
import openai
import pytest

from fishs2_daemon.audio.formats import FORMATS
from tests.adapters.openai.harness import Answer, Running, Start
from tests.audio.signals import decoded, waveform
from tests.conftest import Speech
from tests.voices.sounds import wav

LONG = "This sentence is spoken for a good while, so that there is time to leave. " * 50


@pytest.fixture
async def speaking(start: Start, speech: Speech) -> Running:
    return await start(speech.service)


def post(**fields: object) -> bytes:
    body = json.dumps({"model": "tts-1", "input": LONG} | fields).encode()
    head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def test_speech(speaking: Running) -> None:
    async with openai.AsyncOpenAI(base_url=f"{speaking.url}/v1", api_key="bogus") as client:
        speech = await client.audio.speech.create(
            model="tts-1", input="Good morning.", voice="alloy", response_format="wav"
        )
        with wave.open(io.BytesIO(speech.content)) as file:
            assert file.getframerate() == 22050
            assert 0.4 < file.getnframes() / 22050 < 3
        faster = await client.audio.speech.create(
            model="tts-1", input="Good morning.", voice="alloy", response_format="wav", speed=2
        )
        assert len(faster.content) == pytest.approx(len(speech.content) / 2, rel=0.05)
        with pytest.raises(openai.NotFoundError) as caught:
            await client.audio.speech.create(model="tts-1", input="Hi", voice="nobody", response_format="wav")
        assert (caught.value.code, caught.value.param) == ("voice_not_found", "voice")


async def test_text_without_words(speaking: Running) -> None:
    for text in ("   ", "\n", "**"):
        body = json.dumps({"model": "tts-1", "input": text}).encode()
        answer = await speaking.request("POST", "/v1/audio/speech", body)
        assert len(answer.body) == 44 + 2 * 2205
        assert not any(answer.body[44:])


async def test_the_preview_says_what_it_is(speaking: Running, tmp_path: Path) -> None:
    async def ask(**fields: object) -> Answer:
        body = json.dumps({"model": "tts-1", "input": "Hello.", **fields}).encode()
        return await speaking.request("POST", "/v1/audio/speech", body)

    answer = await ask()
    assert answer.headers["x-fishs2-engine"] == "espeak; preview=1"
    own = answer.headers["x-fishs2-voice"]
    assert own in [voice.id for voice in speaking.service.voices()]
    for name in ("Zoé; x", "deutsch"):
        (tmp_path / "voices" / name).mkdir(parents=True)
        (tmp_path / "voices" / name / "a.wav").write_bytes(wav())
        (tmp_path / "voices" / name / "meta.json").write_text('{"language": "de"}')
    stand_in = await ask(voice="zoé; x", instructions="whisper", control="shout", seed=3)
    assert stand_in.headers["x-fishs2-voice"] == "Zo%C3%A9%3B x; stand-in=1"
    inline = [{"audio": base64.b64encode(wav()).decode(), "text": "Hello."}]
    for fields in ({"references": inline}, {"voices": {"0": "deutsch", "1": own}}, {"text_format": "ssml"}):
        assert (await ask(**fields)).status == 200
    wrong = await ask(text_format="ssml", input="<speak>a</oops>")
    assert (wrong.status, wrong.error["type"]) == (422, "invalid_request_error")
    health = json.loads((await speaking.request("GET", "/health")).body)
    assert (health["status"], health["engine"], health["preview"]) == ("ok", "espeak", True)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("stream", [False, True])
async def test_formats(speaking: Running, name: str, stream: bool) -> None:
    fields = {"model": "tts-1", "input": "Good morning.", "response_format": name, "stream": stream}
    async with httpx.AsyncClient() as client:
        answer = await client.post(f"{speaking.url}/v1/audio/speech", json=fields)
    assert answer.headers["content-type"] == FORMATS[name].content_type
    wave, rate = (waveform(answer.content), 24000) if name == "pcm" else decoded(answer.content)
    assert 0.4 < len(wave) / rate < 3
    assert abs(wave).max() > 0.05


async def test_text_too_long(speaking: Running) -> None:
    body = json.dumps({"model": "tts-1", "input": "a" * 100_001}).encode()
    answer = await speaking.request("POST", "/v1/audio/speech", body)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (413, "text_too_long", "input")


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_frees_the_engine(speaking: Running, stream: bool) -> None:
    async with speaking.connection(receive_bytes=4096) as (_, writer):
        writer.write(post(stream=stream))
        await speaking.until(speaking=True)
    left = asyncio.get_running_loop().time()
    await speaking.until(speaking=False, timeout_s=1)
    assert asyncio.get_running_loop().time() - left < 0.5


async def test_a_dead_worker_breaks_the_stream_and_the_next_request_speaks(speaking: Running, speech: Speech) -> None:
    async with speaking.connection(receive_bytes=4096) as (reader, writer):
        writer.write(post(stream=True))
        assert b" 200 " in await reader.readline()
        speech.worker.kill()
        rest = b""
        while chunk := await reader.read(65536):
            rest += chunk
        assert not rest.endswith(b"0\r\n\r\n")
    body = json.dumps({"model": "tts-1", "input": "Good morning."}).encode()
    assert (await speaking.request("POST", "/v1/audio/speech", body)).status == 200


async def test_a_full_queue_is_refused_at_once(speaking: Running, speech: Speech) -> None:
    speech.settings.max_queue = 0
    assert speech.service.engine is not None
    slots = speech.service.engine.slots - 1  # one is kept for conversations
    connections = [speaking.connection(receive_bytes=4096) for _ in range(slots)]
    writers = []
    for connection in connections:
        _, writer = await connection.__aenter__()
        writers.append(writer)
        writer.write(post(stream=True))
    async with asyncio.timeout(5):
        while speech.service.running < slots:
            await asyncio.sleep(0.005)
    answer = Answer.parse(await speaking.exchange(post().replace(b"Host", b"Connection: close\r\nHost")))
    assert (answer.status, answer.error["code"]) == (503, "server_busy")
    assert int(answer.headers["retry-after"]) > 0
    for connection in connections:
        await connection.__aexit__(None, None, None)
    await speaking.until(speaking=False)
