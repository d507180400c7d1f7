"""OpenAI's own client against the door."""

import asyncio
import base64
import io
import json
import wave
from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
import openai
import pytest

from fishs2_daemon import errors
from tests.adapters.openai.harness import RATE, Running, Start
from tests.audio.signals import decoded
from tests.voices.sounds import wav


@pytest.fixture
async def client(running: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="bogus", max_retries=0) as client:
        yield client


async def test_create_gives_a_whole_wav(running: Running, client: openai.AsyncOpenAI) -> None:
    speech = await client.audio.speech.create(model="tts-1", input="Good morning", voice="alloy", response_format="wav")
    assert speech.response.headers["content-type"] == "audio/wav"
    assert int(speech.response.headers["content-length"]) == len(speech.content)
    with wave.open(io.BytesIO(speech.content)) as file:
        assert file.getframerate() == RATE
        assert file.readframes(file.getnframes()) == running.service.whole
    assert running.service.asked[0].text == "Good morning"
    assert running.service.asked[0].voice is None


async def test_with_streaming_response_starts_before_the_end(running: Running, client: openai.AsyncOpenAI) -> None:
    running.service.hang_after = 2
    speech = client.audio.speech.with_streaming_response.create(
        model="tts-1", input="Good morning", voice="anna", response_format="wav"
    )
    async with speech as response:
        assert response.headers["transfer-encoding"] == "chunked"
        chunks = response.iter_bytes()
        head = await anext(chunks)
        assert head[:4] == b"RIFF"
        assert head[4:8] == head[40:44] == b"\xff\xff\xff\xff"
        assert running.service.running == 1
        running.service.gate.set()
        audio = head[44:] + b"".join([chunk async for chunk in chunks])
    assert audio == running.service.whole
    assert running.service.asked[0].voice == "anna"


async def test_pcm_is_24_khz(running: Running, client: openai.AsyncOpenAI) -> None:
    speech = await client.audio.speech.create(model="s2-pro", input="Hi", voice="alloy", response_format="pcm")
    assert speech.response.headers["content-type"] == "audio/pcm"
    assert len(speech.content) == 2 * round(len(running.service.whole) / 2 * 24000 / RATE)


async def test_models(client: openai.AsyncOpenAI) -> None:
    names = [model.id async for model in client.models.list()]
    assert names == ["fishaudio/s2-pro", "fishs2", "fish-s2", "s2-pro", "tts-1", "tts-1-hd", "gpt-4o-mini-tts"]
    assert (await client.models.retrieve("fishaudio/s2-pro")).id == "fishaudio/s2-pro"
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve("gpt-5")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("error", "expected", "code"),
    [
        (errors.UnknownVoice("there is no voice 'x'"), openai.NotFoundError, "voice_not_found"),
        (errors.InvalidRequest("no", param="speed"), openai.UnprocessableEntityError, "invalid_value"),
        (errors.Busy("full", retry_after_s=7), openai.InternalServerError, "server_busy"),
        (errors.Loading("loading"), openai.InternalServerError, "engine_loading"),
        (errors.DeadlineExceeded("late"), openai.InternalServerError, "deadline_exceeded"),
        (errors.EngineError("broken"), openai.InternalServerError, "generation_failed"),
    ],
)
async def test_error_classes(
    running: Running,
    client: openai.AsyncOpenAI,
    error: Exception,
    expected: type[openai.APIStatusError],
    code: str,
) -> None:
    running.service.error = error
    with pytest.raises(expected) as caught:
        await client.audio.speech.create(model="tts-1", input="Hi", voice="x", response_format="wav")
    assert caught.value.code == code
    assert caught.value.request_id


async def test_client_tries_again_when_busy_and_not_when_it_is_no_use(running: Running) -> None:
    service = running.service
    async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="bogus", max_retries=1) as client:
        service.error = errors.Busy("full", retry_after_s=0)
        with pytest.raises(openai.InternalServerError):
            await client.audio.speech.create(model="tts-1", input="Hi", voice="x", response_format="wav")
        assert len(service.asked) == 2
        service.error = errors.EngineUnavailable("the engine does not start")
        with pytest.raises(openai.InternalServerError):
            await client.audio.speech.create(model="tts-1", input="Hi", voice="x", response_format="wav")
        assert len(service.asked) == 3


async def test_wrong_key(start: Start) -> None:
    running = await start(api_keys=["good"])
    async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="bad") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.models.list()
        assert caught.value.code == "invalid_api_key"
    async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="good") as client:
        assert (await client.models.list()).data


async def test_mid_stream_failure_breaks_the_body(running: Running, client: openai.AsyncOpenAI) -> None:
    running.service.error, running.service.fail_after = errors.WorkerCrashed("the engine died"), 3
    with pytest.raises(openai.APIConnectionError):
        await client.audio.speech.create(model="tts-1", input="Hi", voice="x", response_format="pcm")


async def test_sync_client_in_a_thread(running: Running) -> None:
    def speak() -> bytes:
        with openai.OpenAI(base_url=running.url, api_key="bogus") as client:
            return client.audio.speech.create(model="tts-1", input="Hi", voice="nova", response_format="wav").content

    content = await asyncio.to_thread(speak)
    assert content[44:] == running.service.whole


@pytest.mark.parametrize("name", ["mp3", "opus", "aac", "flac"])
async def test_other_formats(client: openai.AsyncOpenAI, name: Any) -> None:
    speech = await client.audio.speech.create(model="tts-1", input="Hi", voice="nova", response_format=name)
    assert int(speech.response.headers["content-length"]) == len(speech.content)
    assert len(decoded(speech.content)[0]) > 0.09 * RATE


async def test_events(running: Running, client: openai.AsyncOpenAI) -> None:
    speech = client.audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts", input="Hi", voice="coral", response_format="wav", stream_format="sse"
    )
    async with speech as response:
        data = [json.loads(line.removeprefix("data: ")) async for line in response.iter_lines() if line]
    assert [event["type"] for event in data[-2:]] == ["speech.audio.delta", "speech.audio.done"]
    audio = b"".join(base64.b64decode(event["audio"]) for event in data[:-1])
    assert audio[44:] == running.service.whole


async def test_extra_fields(running: Running, client: openai.AsyncOpenAI) -> None:
    extra = {"seed": 3, "fishs2": {"top_k": 5}, "sample_rate": 8000}
    speech = await client.audio.speech.create(
        model="s2-pro", input="Hi", voice="anna", instructions="Cheerful", response_format="pcm", extra_body=extra
    )
    assert len(speech.content) == pytest.approx(2 * 0.1 * 8000, abs=4)
    (asked,) = running.service.asked
    assert (asked.sampling.seed, asked.sampling.top_k, asked.style) == (3, 5, "Cheerful")


async def test_voices(running: Running, client: openai.AsyncOpenAI) -> None:
    """As `audio.voices` of the client's later versions sends it."""
    created = await client.post(
        "/audio/voices",
        cast_to=httpx.Response,
        body={"name": "My Voice", "consent": "cons_1", "prompt_text": "What is said in it."},
        files=[("audio_sample", ("sample.wav", wav(), "audio/wav"))],
        options={"headers": {"Content-Type": "multipart/form-data"}},
    )
    voice = created.json()
    assert (voice["id"], voice["name"], voice["type"]) == ("my-voice", "My Voice", "audio_sample")
    assert voice["created_at"] > 1_700_000_000
    assert "warning" not in voice
    speech = await client.audio.speech.create(
        model="tts-1", input="Hi", voice=cast(Any, {"id": voice["id"]}), response_format="wav"
    )
    assert speech.response.headers["x-fishs2-voice"] == "my-voice"
    deleted = await client.delete("/audio/voices/my-voice", cast_to=httpx.Response)
    assert deleted.json() == {"id": "my-voice", "deleted": True, "object": "audio.voice.deleted"}
    with pytest.raises(openai.NotFoundError) as caught:
        await client.delete("/audio/voices/my-voice", cast_to=httpx.Response)
    assert caught.value.code == "voice_not_found"


@pytest.mark.skipif(not hasattr(openai.resources.audio, "voices"), reason="this version of the client has no voices")
async def test_voices_by_the_client_itself(client: openai.AsyncOpenAI) -> None:
    voices: Any = cast(Any, client.audio).voices
    voice = await voices.create(
        name="Zoe", audio_sample=("s.wav", wav()), consent="cons_1", extra_body={"reference_text": "Words."}
    )
    assert (voice.id, voice.name, voice.type, voice.prompt_text) == ("zoe", "Zoe", "audio_sample", "Words.")
    assert (await voices.delete(voice.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await voices.delete(voice.id)
    with pytest.raises(openai.UnprocessableEntityError):
        await voices.create(name="Zoe", type="prompt", prompt="a warm voice")
