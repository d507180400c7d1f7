"""Fish Audio's clients hear the S2 engine, here with a tiny random model that speaks noise."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import fish_audio_sdk
import fishaudio
import numpy as np
import pytest
from fishaudio.types import ReferenceAudio

from fishs2_daemon import configuration
from fishs2_daemon.daemon import running_service
from fishs2_daemon.engines.s2.tiny import TINY, make_model
from tests.adapters.openai.harness import Running, Start
from tests.voices.sounds import wav

pytest.importorskip("ggml")

#: What two frames make, of 2048 samples each.
FRAMES_BYTES = 2 * 2 * 2048


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    make_model(folder / "model.gguf", replace(TINY, layers=2), seed=3)
    return folder


@pytest.fixture
async def speaking(folder: Path, start: Start) -> AsyncIterator[Running]:
    settings = configuration.load(
        engine="s2",
        model_path=folder / "model.gguf",
        tokenizer_path=folder / "tokenizer.json",
        backend="cpu",
        n_threads=1,
        max_new_tokens=12,
    )
    async with running_service(settings) as (service, workers):
        await workers.ready(60)
        yield await start(service)


def is_same(one: bytes, other: bytes) -> bool:
    """Save for rounding: how frames fall into blocks is not always the same."""
    a, b = (np.frombuffer(samples, "<i2").astype(int) for samples in (one, other))
    return len(a) == len(b) and bool((np.abs(a - b) <= 1).all())


async def test_a_voice_is_made_and_cloned(speaking: Running) -> None:
    async with fishaudio.AsyncFishAudio(api_key="any", base_url=speaking.url) as client:

        async def speak(**options: object) -> bytes:
            config = fishaudio.TTSConfig(format="pcm", max_new_tokens=2)
            return await client.tts.convert(text="Hello there.", config=config, **options)  # type: ignore[arg-type]

        plain = await speak()
        voice = await client.voices.create(title="Anna", voices=[wav()], texts=["This is what I sound like."])
        stored = await speak(reference_id=voice.id)
        sent = await speak(references=[ReferenceAudio(audio=wav(), text="This is what I sound like.")])
        other = await speak(references=[ReferenceAudio(audio=wav(level=99), text="This is another voice.")])
        assert {len(audio) for audio in (plain, stored, sent, other)} == {FRAMES_BYTES}
        assert is_same(sent, stored)
        assert not any(is_same(*pair) for pair in itertools.combinations((plain, stored, other), 2))

        async def words() -> AsyncIterator[str]:
            for word in ("Hello ", "there."):
                yield word

        config = fishaudio.TTSConfig(format="pcm", max_new_tokens=2, reference_id=voice.id)
        live = b"".join([chunk async for chunk in client.tts.stream_websocket(words(), config=config)])
        assert is_same(live, stored)


async def test_the_older_client(speaking: Running) -> None:
    def use() -> bytes:
        request = fish_audio_sdk.TTSRequest(text="Hello there.", format="pcm", sample_rate=44100)
        with fish_audio_sdk.Session("any", base_url=speaking.url) as session:
            return b"".join(session.tts(request))

    audio = await asyncio.to_thread(use)
    assert 0 < len(audio) <= 12 * 2 * 2048
    assert len(audio) % (2 * 2048) == 0
    assert any(audio)
