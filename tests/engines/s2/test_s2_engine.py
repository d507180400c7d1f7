"""The engine behind the daemon: a tiny random model speaks noise, on the real road through worker and service."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from wyoming.client import AsyncTcpClient
from wyoming.tts import Synthesize

from fishs2_daemon import configuration
from fishs2_daemon.daemon import running_service
from fishs2_daemon.engines.base import EngineOptions
from fishs2_daemon.engines.s2.engine import S2Engine
from fishs2_daemon.engines.s2.tiny import TINY, make_model
from fishs2_daemon.errors import EngineError, EngineUnavailable
from fishs2_daemon.service import SpeechService
from fishs2_daemon.sockets import listen_tcp
from fishs2_daemon.speech import SpeechRequest
from fishs2_daemon.worker.supervisor import Supervisor
from fishs2_daemon.wyoming_server.server import WyomingServer

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    make_model(folder / "model.gguf", replace(TINY, layers=2), seed=3)
    return folder


@asynccontextmanager
async def speaking(folder: Path, **settings: object) -> AsyncIterator[tuple[SpeechService, Supervisor]]:
    loaded = configuration.load(
        engine="s2",
        model_path=folder / "model.gguf",
        tokenizer_path=folder / "tokenizer.json",
        backend="cpu",
        n_threads=1,
        max_new_tokens=12,
        **settings,
    )
    async with running_service(loaded) as (service, supervisor):
        yield service, supervisor


async def spoken(service: SpeechService, text: str) -> bytes:
    async with aclosing(service.speak(SpeechRequest(text))) as blocks:
        return b"".join([block.samples async for block in blocks])


async def test_it_speaks_whole_frames_at_the_model_s_rate_the_same_each_time(folder: Path) -> None:
    async with speaking(folder) as (service, supervisor):
        engine = await supervisor.ready(60)
        assert (engine.name, engine.sample_rate, engine.slots) == ("s2", 44100, 1)
        audio = await spoken(service, "Hello there.")
        assert len(audio) % (2 * 2048) == 0
        assert 0 < len(audio) <= 12 * 2 * 2048
        assert any(audio)
        assert await spoken(service, "Hello there.") == audio
        assert await spoken(service, "Something else.") != audio


async def test_the_first_block_leaves_before_the_answer_is_whole(folder: Path) -> None:
    async with (
        speaking(folder) as (service, _),
        aclosing(service.speak(SpeechRequest("One. Two, three and four. Five.\n\nSix."))) as blocks,
    ):
        first = await anext(blocks)
        assert first.duration_s <= 0.0465
        assert service.running == 1
        assert [block async for block in blocks]


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
    async with speaking(folder) as (service, _):
        phrases = 18
        sentence = " ".join(["This sentence", *["fills the context"] * 14, "until there is no room. "])
        audio = await spoken(service, sentence * phrases)
    assert len(audio) > phrases * 2 * 2048


async def test_a_wyoming_client_hears_it(folder: Path) -> None:
    async with speaking(folder) as (service, supervisor):
        await supervisor.ready(60)
        server = WyomingServer(service)
        sockets = listen_tcp("127.0.0.1", 0)
        await server.start(sockets)
        async with AsyncTcpClient("127.0.0.1", sockets[0].getsockname()[1]) as client:
            await client.write_event(Synthesize("Noise, please.").event())
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


async def test_a_backend_that_it_does_not_know_is_refused_with_those_it_does(folder: Path) -> None:
    options = EngineOptions(str(folder / "model.gguf"), str(folder / "tokenizer.json"), backend="vulkan")
    engine = S2Engine(options)
    with pytest.raises(EngineError, match="allowed: auto, cuda, cpu"):
        await engine.load(lambda what, fraction: None)
    await engine.close()
