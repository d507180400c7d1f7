"""The engine in its worker process, behind the service: what crashes or hangs there is the supervisor's."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import psutil
import pytest

from fishs2_daemon import configuration
from fishs2_daemon.daemon import running_service
from fishs2_daemon.engines.base import Utterance
from fishs2_daemon.errors import EngineError, EngineUnavailable, WorkerCrashed
from fishs2_daemon.service import SpeechService
from fishs2_daemon.speech import Clip, SpeechRequest
from fishs2_daemon.worker import wire
from fishs2_daemon.worker.pool import WorkerPool
from tests.engines.s2cpp.standin import FRAME, Install, Record, StandIn, sound
from tests.worker.harness import Phrases


@asynccontextmanager
async def speaking(standin: StandIn, **settings: object) -> AsyncIterator[tuple[SpeechService, WorkerPool]]:
    given = {"engine": "s2cpp", "backend": "cpu", **standin.settings, **settings}
    async with running_service(configuration.load(**given)) as (service, workers):
        await workers.ready(20)
        yield service, workers


async def said(workers: WorkerPool, *texts: str, clips: tuple[Clip, ...] = ()) -> bytes:
    async with aclosing(workers.speak(Utterance("default", Phrases(*texts), clips))) as blocks:
        return b"".join([block.samples async for block in blocks])


def pid_of(workers: WorkerPool) -> int | None:
    return workers.members[0].pid


@pytest.mark.parametrize("interface", ["-DNEWEST", "-DOLD_ABI"])
async def test_audio_arrives_sample_for_sample_whatever_goes_wrong_before(install: Install, interface: str) -> None:
    async with speaking(install(interface)) as (_, workers):
        pid = pid_of(workers)
        assert workers.engine
        assert (workers.engine.name, workers.engine.device) == ("s2cpp", "cpu (s2.cpp)")
        assert await said(workers, "Hello frames=120.") == sound("Hello frames=120.", 120)
        with pytest.raises(EngineError, match=r"the synthesis failed \(-4\)"):
            await said(workers, "code=-4")
        assert await said(workers, "Good.") == sound("Good.")
        assert pid_of(workers) == pid, "an error of one text is no crash"


async def test_callbacks_may_come_from_a_thread_of_the_library_s_own(standin: StandIn) -> None:
    text = "foreign odd glued frames=90"
    async with speaking(standin) as (_, workers):
        assert await said(workers, text) == sound(text, 90)


@pytest.mark.parametrize(("text", "signal"), [("abort", 6), ("segfault", 11)])
async def test_a_text_that_crashes_the_library_is_given_up_and_the_next_one_speaks(
    standin: StandIn, text: str, signal: int
) -> None:
    async with speaking(standin) as (_, workers):
        with pytest.raises(WorkerCrashed, match=f"signal {signal}"):
            await said(workers, text)
        assert await said(workers, "Fine.") == sound("Fine.")
    assert len(standin.called(f"speak {text}")) == 2


async def test_a_library_that_hangs_costs_the_worker_its_life_when_nobody_waits_any_more(standin: StandIn) -> None:
    async with speaking(standin, cancel_timeout_s=0.3) as (_, workers):
        worker = psutil.Process(pid_of(workers))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(said(workers, "hang"), 0.3)
        async with asyncio.timeout(15):
            while pid_of(workers) in (worker.pid, None):
                await asyncio.sleep(0.02)
        assert await said(workers, "Fine.") == sound("Fine.")
        assert not worker.is_running()


async def test_a_cancel_frees_the_pipeline_of_the_same_worker(standin: StandIn) -> None:
    async with speaking(standin) as (_, workers):
        pid = pid_of(workers)
        for _ in range(5):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(said(workers, "frames=2000 slow=20"), 0.15)
        assert await said(workers, "Next.") == sound("Next.")
        assert pid_of(workers) == pid
    assert standin.calls.count("returned -10") == 5
    assert "two at once" not in standin.calls


async def test_a_slow_listener_holds_the_library_up(standin: StandIn) -> None:
    text = "frames=3000"
    async with speaking(standin) as (_, workers):
        async with aclosing(workers.speak(Utterance("default", Phrases(text)))) as blocks:
            heard = [(await anext(blocks)).samples]
            await asyncio.sleep(0.5)
            assert not standin.called("returned")
            heard += [block.samples async for block in blocks]
        assert b"".join(heard) == sound(text, 3000)
        assert 3000 * FRAME * 2 > 10 * wire.WINDOW_BYTES


async def test_a_stored_voice_is_made_ready_once_and_spoken_with(
    standin: StandIn, record: Record, tmp_path: Path
) -> None:
    anna = record()
    folder = tmp_path / "voices" / "anna"
    folder.mkdir(parents=True)
    shutil.copy(anna.clip.path, folder / "anna.wav")
    (folder / "anna.txt").write_text(anna.clip.transcript)
    async with speaking(standin, voices_dir=folder.parent, warm_voices="anna") as (service, _):
        async with asyncio.timeout(10):
            while not standin.called("encode"):
                await asyncio.sleep(0.02)
        for _ in range(2):
            async with aclosing(service.speak(SpeechRequest("Hello there.", "anna"))) as blocks:
                heard = b"".join([block.samples async for block in blocks])
            assert heard == sound("Hello there.", 3, anna.pcm)
        assert [voice.id for voice in service.voices()] == ["anna", "default"]
    assert len(standin.called("encode")) == 1


async def test_settings_reach_the_library(standin: StandIn) -> None:
    settings = {"backend": "vulkan", "gpu_device": [1], "n_gpu_layers": 9, "n_threads": 2, "max_new_tokens": 77}
    async with speaking(standin, **settings) as (_, workers):
        await said(workers, "Hi.")
    assert standin.called("files")[0].endswith(" gpu 1 backend 0 layers 9 codec 1")
    assert standin.called("params") == ["params 77 0.80 0.80 30 0 2 0"]


async def test_a_folder_without_the_library_is_named_to_who_asks(standin: StandIn, tmp_path: Path) -> None:
    given = {**standin.settings, "engine": "s2cpp", "runtime_dir": tmp_path / "runtime"}
    async with running_service(configuration.load(**given)) as (service, workers):
        with pytest.raises(EngineUnavailable, match=r"FISHS2_RUNTIME_DIR=.*runtime: there is no such folder"):
            await workers.ready(20)
        with pytest.raises(EngineUnavailable):
            await anext(service.speak(SpeechRequest("Hello.")))
