"""Voices that are stored at the front are spoken by an S2 model elsewhere: a tiny random one, which speaks noise."""

import hashlib
import importlib.util
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from fishs2_daemon import configuration
from fishs2_daemon.daemon import running_service
from fishs2_daemon.service import SpeechService
from fishs2_daemon.speech import Clip, SamplingOverrides, SpeechRequest
from tests.adapters.openai.harness import Running, doors_with
from tests.engines.remote.front import front_of
from tests.voices.sounds import wav

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ggml") is None, reason="ggml-python is not installed")

SEED = SamplingOverrides(seed=4, max_new_tokens=8)
SAID = {"anna": "This is what I sound like.", "bert": "And this is me."}
DIALOGUE = "<|speaker:0|>Hello there. <|speaker:1|>Hello, you. How are you?"


@pytest.fixture
async def upstream(tmp_path: Path) -> AsyncIterator[Running]:
    from fishs2_daemon.engines.s2.tiny import TINY, make_model

    make_model(tmp_path / "model.gguf", replace(TINY, layers=2), seed=3)
    settings = configuration.load(
        engine="s2", model_path=tmp_path / "model.gguf", tokenizer_path=tmp_path / "tokenizer.json", backend="cpu",
        n_threads=1, voices_dir=tmp_path / "none",
    )  # fmt: skip
    async with running_service(settings) as (service, workers), doors_with() as start:
        await workers.ready(60)
        yield await start(service)


async def spoken(service: SpeechService, request: SpeechRequest) -> bytes:
    async with aclosing(service.speak(request)) as blocks:
        return b"".join([block.samples async for block in blocks])


async def test_a_voice_of_the_front_sounds_there_as_it_would_there(upstream: Running, tmp_path: Path) -> None:
    clips = {}
    for name, seconds in (("anna", 1.0), ("bert", 1.4)):
        folder = tmp_path / "voices" / name
        folder.mkdir(parents=True)
        (folder / "clip.wav").write_bytes(sound := wav(seconds, rate=44100))
        (folder / "clip.txt").write_text(SAID[name])
        clips[name] = Clip(str(folder / "clip.wav"), hashlib.sha256(sound).hexdigest(), SAID[name])
    async with front_of(upstream.url, voices_dir=tmp_path / "voices") as front:
        engine = front.service.engine
        assert engine
        assert (engine.sample_rate, engine.clones) == (44100, True)
        assert {voice.id for voice in front.service.voices()} == {"anna", "bert", "s2"}
        heard = []
        for name in ("anna", "bert"):
            heard.append(await spoken(front.service, SpeechRequest("Hello there.", voice=name, sampling=SEED)))
            there = SpeechRequest("Hello there.", sampling=SEED, references=(clips[name],))
            assert heard[-1] == await spoken(upstream.service, there)
        assert heard[0] != heard[1]
        dialogue = SpeechRequest(DIALOGUE, voices={0: "anna", 1: "bert"}, sampling=SEED)
        there = SpeechRequest(DIALOGUE, references=(clips["anna"], clips["bert"]), sampling=SEED)
        assert await spoken(front.service, dialogue) == await spoken(upstream.service, there)
