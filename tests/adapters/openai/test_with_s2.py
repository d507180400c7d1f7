"""The door over a tiny random S2 model: cloned voices by upload, by path and inline. It speaks noise."""

import asyncio
import base64
import importlib.util
import io
import json
import re
import shutil
import wave
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from fishs2_daemon import configuration
from fishs2_daemon.daemon import running_service
from tests.adapters.openai.harness import Running, Start
from tests.voices.sounds import wav

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ggml") is None, reason="ggml-python is not installed")

WORDS = "This is what I sound like."
SOUND = wav(1.0, rate=44100)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fishs2_daemon.engines.s2.tiny import TINY, make_model

    folder = tmp_path_factory.mktemp("tiny")
    make_model(folder / "model.gguf", replace(TINY, layers=2), seed=3)
    return folder


@pytest.fixture
async def speaking(model: Path, start: Start, tmp_path: Path) -> AsyncIterator[Running]:
    settings = configuration.load(
        engine="s2", model_path=model / "model.gguf", tokenizer_path=model / "tokenizer.json", backend="cpu",
        n_threads=1, max_new_tokens=12, reference_dirs=[tmp_path / "clips"],
    )  # fmt: skip
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.wav").write_bytes(SOUND)
    async with running_service(settings) as (service, supervisor):
        await supervisor.ready(60)
        yield await start(service)


def frames(content: bytes) -> bytes:
    with wave.open(io.BytesIO(content)) as file:
        assert file.getframerate() == 44100
        assert file.getnframes() > 0
        assert file.getnframes() % 2048 == 0
        return file.readframes(file.getnframes())


async def test_a_voice_is_uploaded_and_spoken_with(speaking: Running) -> None:
    async with openai.AsyncOpenAI(base_url=f"{speaking.url}/v1", api_key="bogus", max_retries=0) as client:

        async def say(voice: str = "alloy", **extra: Any) -> tuple[bytes, str, str]:
            speech = await client.audio.speech.create(
                model="s2-pro", input="Hello there.", voice=voice, response_format="wav", extra_body={"seed": 4} | extra
            )
            headers = speech.response.headers
            return frames(speech.content), headers["x-fishs2-engine"], headers["x-fishs2-voice"]

        plain = await say()
        assert plain[1:] == ("s2", "s2")
        await client.post(
            "/audio/voices", cast_to=httpx.Response, body={"name": "anna", "prompt_text": WORDS},
            files=[("audio_sample", ("a.wav", SOUND))], options={"headers": {"Content-Type": "multipart/form-data"}},
        )  # fmt: skip
        cloned = await say("anna")
        assert cloned[1:] == ("s2", "anna")
        assert cloned[0] != plain[0]
        inline = {"references": [{"audio": base64.b64encode(SOUND).decode(), "text": WORDS}]}
        assert await say(**inline) == (cloned[0], "s2", "a recording")
        assert await say(reference_audio="clips/a.wav", reference_text=WORDS) == (cloned[0], "s2", "a recording")
        assert (await say("anna", reference_text="Other words."))[0] != cloned[0]
        dialogue = await say(voices={"0": "anna", "1": "anna"}, input="<|speaker:0|>Hello. <|speaker:1|>Hello.")
        assert dialogue[1:] == ("s2", "anna, anna")
        stream = client.audio.speech.with_streaming_response.create(
            model="s2-pro", input="Hello there.", voice="anna", response_format="wav", extra_body={"seed": 4}
        )
        async with stream as response:
            assert (await response.read())[44:] == cloned[0]


async def test_uploading_deleting_and_speaking_at_once(speaking: Running) -> None:
    """Whoever speaks hears the voice, or that there is none; nothing else is said, and nothing hangs."""
    until = asyncio.get_running_loop().time() + 3
    spoken: dict[int, int] = {}

    async def upload(client: httpx.AsyncClient) -> None:
        while asyncio.get_running_loop().time() < until:
            files = [("files", ("a.wav", SOUND)), ("audio_sample", ("a.wav", SOUND))]
            answer = await client.post("/v1/audio/voices", data={"voice_id": "ben", "prompt_text": WORDS}, files=files)
            assert answer.status_code == 200, answer.text

    async def delete(client: httpx.AsyncClient) -> None:
        while asyncio.get_running_loop().time() < until:
            assert (await client.delete("/v1/voices/ben")).status_code in (200, 404)
            await asyncio.sleep(0.4)

    async def speak(client: httpx.AsyncClient) -> None:
        body = {"model": "s2-pro", "input": "Hi.", "voice": "ben"}
        while asyncio.get_running_loop().time() < until:
            answer = await client.post("/v1/audio/speech", json=body)
            spoken[answer.status_code] = spoken.get(answer.status_code, 0) + 1
            if answer.status_code != 200:
                # 500: deleted between the moment the voice was looked up and the one it was read in.
                assert json.loads(answer.text)["error"]["code"] in ("voice_not_found", "generation_failed")
                await asyncio.sleep(0.02)

    async with httpx.AsyncClient(base_url=speaking.url, timeout=30) as client, asyncio.TaskGroup() as tasks:
        for work in (upload, upload, delete, speak, speak):
            tasks.create_task(work(client))
    assert spoken[200] > 0
    assert (await speaking.request("GET", "/health")).status == 200


README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_as_the_readme_has_it(speaking: Running, tmp_path: Path) -> None:
    """Its lines that name no voice of the preview engine."""
    blocks = [block for block in re.findall(r"```sh\n(curl .*?)```", README, re.S) if "audio/speech" in block]
    for block in blocks:
        if '"voice"' in block:
            continue
        script = block.replace("http://127.0.0.1:8020", speaking.url).replace("aplay -q -t raw", "cat > played.pcm #")
        process = await asyncio.create_subprocess_exec("sh", "-ec", script, cwd=tmp_path)
        assert await asyncio.wait_for(process.wait(), 30) == 0
    assert frames((tmp_path / "hello.wav").read_bytes())
    assert (tmp_path / "played.pcm").stat().st_size > 2048
