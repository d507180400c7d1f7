"""The engine behind the daemon: a tiny random model speaks noise, on the real road through worker and service."""

import asyncio
import os
import signal
import subprocess
import sys
import wave
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from openai import AsyncOpenAI
from wyoming.client import AsyncTcpClient
from wyoming.info import Info
from wyoming.tts import Synthesize, SynthesizeVoice

from adapters.openai.server import HttpDoor
from fishs2_daemon import configuration
from fishs2_daemon.audio import wav
from fishs2_daemon.daemon import running_service
from fishs2_daemon.engines.base import EngineOptions
from fishs2_daemon.engines.s2.engine import S2Engine
from fishs2_daemon.engines.s2.tiny import TINY, make_model
from fishs2_daemon.errors import EngineError, EngineUnavailable, MissingTranscript
from fishs2_daemon.service import SpeechService
from fishs2_daemon.sockets import listen_tcp
from fishs2_daemon.speech import EngineState, SamplingOverrides, SpeechRequest
from fishs2_daemon.worker.pool import WorkerPool
from fishs2_daemon.wyoming_server.info import info_event
from fishs2_daemon.wyoming_server.server import WyomingServer

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    make_model(folder / "model.gguf", replace(TINY, layers=2), seed=3)
    return folder


@pytest.fixture
def voices(tmp_path: Path) -> Path:
    """A folder with the voice anna, one second of two tones."""
    folder = tmp_path / "voices"
    (folder / "anna").mkdir(parents=True)
    time_s = np.arange(44100) / 44100
    samples = 8000 * (np.sin(2 * np.pi * 220 * time_s) + np.sin(2 * np.pi * 700 * time_s))
    pcm = samples.astype("<i2").tobytes()
    (folder / "anna" / "anna.wav").write_bytes(wav.header(44100, len(pcm)) + pcm)
    (folder / "anna" / "anna.txt").write_text("This is what I sound like.")
    return folder


def settings_of(folder: Path, **settings: object) -> dict[str, object]:
    return {
        "engine": "s2",
        "model_path": folder / "model.gguf",
        "tokenizer_path": folder / "tokenizer.json",
        "backend": "cpu",
        "n_threads": 1,
        "max_new_tokens": 12,
        **settings,
    }


@asynccontextmanager
async def speaking(folder: Path, **settings: object) -> AsyncIterator[tuple[SpeechService, WorkerPool]]:
    async with running_service(configuration.load(**settings_of(folder, **settings))) as (service, supervisor):
        yield service, supervisor


async def spoken(service: SpeechService, text: str, voice: str | None = None, **sampling: float) -> bytes:
    request = SpeechRequest(text, voice, sampling=SamplingOverrides(**sampling))  # type: ignore[arg-type]
    async with aclosing(service.speak(request)) as blocks:
        return b"".join([block.samples async for block in blocks])


def is_same(one: bytes, other: bytes) -> bool:
    """A frame's sound does not depend on its block, save for rounding."""
    a, b = (np.frombuffer(samples, "<i2").astype(int) for samples in (one, other))
    return len(a) == len(b) and bool((np.abs(a - b) <= 1).all())


async def test_it_speaks_whole_frames_at_the_model_s_rate_the_same_each_time(folder: Path) -> None:
    async with speaking(folder) as (service, supervisor):
        engine = await supervisor.ready(60)
        assert (engine.name, engine.sample_rate, engine.slots) == ("s2", 44100, 2)
        audio = await spoken(service, "Hello there.")
        assert len(audio) % (2 * 2048) == 0
        assert 0 < len(audio) <= 12 * 2 * 2048
        assert any(audio)
        assert is_same(await spoken(service, "Hello there."), audio)
        assert not is_same(await spoken(service, "Something else."), audio)


async def test_home_assistant_is_offered_the_languages_that_are_set_and_not_all_of_the_model_s(folder: Path) -> None:
    async with speaking(folder, languages="de,en") as (service, supervisor):
        engine = await supervisor.ready(60)
        assert len(engine.voices[0].languages) > 2
        (program,) = Info.from_event(info_event(service)).tts
        assert {tag for voice in program.voices for tag in voice.languages} == {"de", "en"}


async def test_the_first_block_leaves_before_the_answer_is_whole(folder: Path) -> None:
    async with (
        speaking(folder) as (service, _),
        aclosing(service.speak(SpeechRequest("One. Two, three and four. Five.\n\nSix."))) as blocks,
    ):
        first = await anext(blocks)
        assert first.duration_s <= 0.0465
        assert service.running == 1
        assert [block async for block in blocks]


async def test_a_stored_voice_is_cloned_and_its_codes_are_kept_beside_it(folder: Path, voices: Path) -> None:
    async with speaking(folder, voices_dir=voices) as (service, supervisor):
        plain = await spoken(service, "Hello there.")
        cloned = await spoken(service, "Hello there.", "anna")
        assert cloned
        assert not is_same(cloned, plain)
        (codes,) = (voices / "anna").glob(".anna.wav.*.codes.npy")
        made_at = codes.stat().st_mtime_ns
        assert is_same(await spoken(service, "Hello there.", "ANNA"), cloned)
        assert supervisor.engine
        assert [voice.id for voice in service.voices()] == ["anna", "s2"]
    async with speaking(folder, voices_dir=voices, default_voice="anna", warm_voices=["anna"]) as (service, _):
        assert is_same(await spoken(service, "Hello there."), cloned)
        assert codes.stat().st_mtime_ns == made_at


async def test_a_voice_without_a_transcript_is_refused(folder: Path, voices: Path) -> None:
    (voices / "anna" / "anna.txt").unlink()
    async with speaking(folder, voices_dir=voices) as (service, _):
        with pytest.raises(MissingTranscript, match=r"anna\.txt beside it"):
            await spoken(service, "Hello.", "anna")


async def test_a_clip_that_is_no_recording_is_an_error_and_never_another_voice(folder: Path, voices: Path) -> None:
    (voices / "anna" / "anna.wav").write_bytes(b"RIFF and nothing behind it")
    async with speaking(folder, voices_dir=voices) as (service, _):
        with pytest.raises(EngineError, match=r"anna\.wav"):
            await spoken(service, "Hello.", "anna")
        assert await spoken(service, "Hello.")


async def test_a_request_s_sampling_counts(folder: Path) -> None:
    async with speaking(folder) as (service, _):
        one = await spoken(service, "Hello there.", seed=1)
        assert is_same(await spoken(service, "Hello there.", seed=1), one)
        assert not is_same(await spoken(service, "Hello there.", seed=2), one)
        short = await spoken(service, "Hello there.", max_new_tokens=3)
        assert len(short) == 3 * 2 * 2048


async def test_texts_together_sound_as_alone(folder: Path) -> None:
    """Greedy: a batch's kernels may round another way, and a near tie would end differently."""
    texts = ["Hello there.", "Quite another text, and a longer one. With two sentences."]
    async with speaking(folder, slots=2, top_k=1) as (service, supervisor):
        assert (await supervisor.ready(60)).slots == 2
        alone = [await spoken(service, text) for text in texts]
        together = await asyncio.gather(*(spoken(service, text) for text in texts))
        assert all(map(is_same, together, alone))


@pytest.mark.parametrize("voice", ["alloy", "anna"])
async def test_openai_s_client_hears_it(folder: Path, voices: Path, voice: str) -> None:
    async with speaking(folder, voices_dir=voices) as (service, supervisor):
        await supervisor.ready(60)
        door = HttpDoor(service, service.settings)
        sock = listen_tcp("127.0.0.1", 0)[0]
        address = f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
        await door.start(sock)
        wanted = await spoken(service, "Noise, please.", None if voice == "alloy" else voice)
        asked = {"model": "tts-1", "voice": voice, "input": "Noise, please.", "response_format": "wav"}
        async with AsyncOpenAI(base_url=address, api_key="none", max_retries=0) as client:
            speech = await client.audio.speech.create(**asked)
            assert is_same(speech.content[44:], wanted)
            async with client.audio.speech.with_streaming_response.create(**asked) as response:
                pieces = [piece async for piece in response.iter_bytes()]
        assert len(pieces) > 1
        assert is_same(b"".join(pieces)[44:], wanted)
        await door.drain(1)
        await door.close()


@pytest.mark.parametrize("voice", [[], ["--voice", "anna"]])
def test_say_speaks_with_it(folder: Path, voices: Path, voice: list[str], tmp_path: Path) -> None:
    variables = {f"FISHS2_{name.upper()}": str(value) for name, value in settings_of(folder, voices_dir=voices).items()}
    command = [sys.executable, "-m", "fishs2_daemon", "say", "Noise, please.", "-o", "noise.wav", *voice]
    subprocess.run(command, env=os.environ | variables, check=True, capture_output=True, timeout=60)
    with wave.open("noise.wav") as file:
        assert file.getframerate() == 44100
        assert file.getnframes() % 2048 == 0
        assert file.getnframes()


async def test_a_listener_who_leaves_stops_it_between_two_frames(folder: Path) -> None:
    async with speaking(folder) as (service, supervisor):
        await supervisor.ready(60)
        pid = supervisor.pid
        for _ in range(5):
            async with aclosing(service.speak(SpeechRequest("Many words. " * 50))) as blocks:
                await anext(blocks)
        assert await spoken(service, "Still here.")
        assert supervisor.pid == pid


async def test_a_text_longer_than_the_context_goes_on(folder: Path) -> None:
    async with speaking(folder, context=512) as (service, _):
        phrases = 6
        sentence = " ".join(["This sentence", *["fills the context"] * 14, "until there is no room. "])
        audio = await spoken(service, sentence * phrases)
    assert len(audio) > phrases * 2 * 2048


@pytest.mark.parametrize("voice", [None, SynthesizeVoice("anna")])
async def test_a_wyoming_client_hears_it(folder: Path, voices: Path, voice: SynthesizeVoice | None) -> None:
    async with speaking(folder, voices_dir=voices) as (service, supervisor):
        await supervisor.ready(60)
        server = WyomingServer(service)
        sockets = listen_tcp("127.0.0.1", 0)
        await server.start(sockets)
        async with AsyncTcpClient("127.0.0.1", sockets[0].getsockname()[1]) as client:
            await client.write_event(Synthesize("Noise, please.", voice).event())
            event = await asyncio.wait_for(client.read_event(), 20)
            assert event
            assert event.data["rate"] == 44100
            while event and event.type != "audio-stop":
                assert event.type != "error", event.data
                event = await asyncio.wait_for(client.read_event(), 20)
        server.stop_accepting()
        await server.drain(1)


@pytest.mark.parametrize("missing", ["model.gguf", "tokenizer.json"])
async def test_a_file_that_is_not_there_is_named(folder: Path, tmp_path: Path, missing: str) -> None:
    for name in {"model.gguf", "tokenizer.json"} - {missing}:
        (tmp_path / name).symlink_to(folder / name)
    async with speaking(tmp_path) as (service, _):
        with pytest.raises(EngineUnavailable, match=missing):
            await spoken(service, "Hello.")


async def test_a_backend_that_it_does_not_have_is_what_auto_would_be(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = EngineOptions(str(folder / "model.gguf"), str(folder / "tokenizer.json"), backend="vulkan", slots=1)
    engine = S2Engine(options)
    assert "thread" in (await engine.load(lambda what, fraction: None)).device
    assert caplog.text.count("FISHS2_BACKEND=vulkan") == 1
    await engine.close()


async def test_two_workers_share_the_texts_and_one_that_dies_leaves_the_other(folder: Path) -> None:
    async with speaking(folder, gpu_device=[0, 1], slots=1) as (service, workers):
        async with asyncio.timeout(60):
            while (await workers.ready(60)).slots < 2:
                await workers.wait_for_change(1)
        assert len({member.pid for member in workers.members}) == 2
        alone = await spoken(service, "Hello there.")
        together = await asyncio.gather(*(spoken(service, "Hello there.") for _ in range(4)))
        assert all(is_same(alone, each) for each in together)
        gone = workers.members[0].pid
        assert gone
        os.kill(gone, signal.SIGKILL)
        assert is_same(await spoken(service, "Hello there."), alone)
        assert service.state is EngineState.READY
