"""The pool with real worker processes: one that rests and comes back, one that another takes over from."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path

import psutil
import pytest

from fishs2_daemon import configuration
from fishs2_daemon.catalogue import VoiceCatalogue
from fishs2_daemon.engines.base import Utterance
from fishs2_daemon.errors import EngineUnavailable, Loading
from fishs2_daemon.metrics import Metrics
from fishs2_daemon.service import SpeechService
from fishs2_daemon.settings import Settings
from fishs2_daemon.speech import EngineState, SpeechRequest
from fishs2_daemon.voices.store import VoiceStore
from fishs2_daemon.worker.pool import WorkerPool
from fishs2_daemon.worker.supervisor import Supervisor
from tests.worker.harness import PROGRAM, Phrases, say

#: It shows its options by its slots: as many as they ask for, three where they ask for none.
LOAD = "global INFO; import dataclasses; INFO = dataclasses.replace(INFO, slots=self.options.slots or 3)"

#: A worker that does not come to the end of "for ever".
ENDLESS = "await asyncio.sleep(60 if 'ever' in phrase else 0)"

#: Its engine clones, and so has voices to warm.
CLONES = "INFO = dataclasses.replace(INFO, clones=True)"

Employ = Callable[..., AbstractAsyncContextManager[WorkerPool]]


@pytest.fixture
def settings() -> Settings:
    return configuration.load(queue_timeout_s=5, engine="s2", idle_timeout_s=5)


@pytest.fixture
def employ(tmp_path: Path, settings: Settings) -> Employ:
    @asynccontextmanager
    async def begin(*, load: str = "pass", speak: str = "pass") -> AsyncIterator[WorkerPool]:
        script = tmp_path / "worker.py"
        program = PROGRAM.replace("pass", "self.options = options", 1).replace(
            "{load}", f"options = self.options; {LOAD}; {load}"
        )
        script.write_text(program.replace("{speak}", speak).replace('"test"] =', '"s2"] ='))
        pool = WorkerPool("s2", settings, Metrics(), command=(sys.executable, str(script)))
        running = asyncio.create_task(pool.run())
        try:
            yield pool
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    return begin


@asynccontextmanager
async def served(pool: WorkerPool, settings: Settings) -> AsyncIterator[SpeechService]:
    """The service over `pool`, once that is ready."""
    service = SpeechService(settings, pool, VoiceCatalogue(settings, VoiceStore(settings.voices_dir)), Metrics())
    admitting = asyncio.create_task(service.keep_admitting())
    await pool.ready(10)
    try:
        yield service
    finally:
        admitting.cancel()
        await asyncio.gather(admitting, return_exceptions=True)


async def heard(service: SpeechService, text: str) -> int:
    """Samples."""
    async with aclosing(service.speak(SpeechRequest(text))) as blocks:
        return sum([len(block.samples) // 2 async for block in blocks])


@asynccontextmanager
async def endless(service: SpeechService, count: int) -> AsyncIterator[None]:
    """So many answers that are begun by workers of `ENDLESS` and go on until the context ends."""
    before = service.running
    speaking = [asyncio.create_task(heard(service, "for ever")) for _ in range(count)]
    await until(lambda: service.running == before + count)
    await asyncio.sleep(0.1)  # the workers have them, too
    try:
        yield
        assert not any(task.done() for task in speaking)
    finally:
        for task in speaking:
            task.cancel()
        await asyncio.gather(*speaking, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.02)


# Rest


async def test_a_pool_without_work_gives_its_memory_back_and_the_next_text_loads_it(
    employ: Employ, settings: Settings
) -> None:
    settings.idle_unload = 0.3
    async with employ() as pool:
        engine = await pool.ready(10)
        process = psutil.Process(pool.pid)
        assert await say(pool, "abc") == 3
        await until(lambda: pool.state is EngineState.UNLOADED)
        await until(lambda: not process.is_running())
        assert pool.pid is None
        assert pool.is_live
        assert pool.engine == engine, "doors go on telling what there is"
        assert "the next request loads it" in pool.detail
        assert await say(pool, "abcd") == 4
        assert pool.state is EngineState.READY
        await until(lambda: pool.state is EngineState.UNLOADED)
        assert (await pool.ready(10)) == engine


async def test_a_pool_does_not_rest_while_it_speaks_or_loads(employ: Employ, settings: Settings) -> None:
    settings.idle_unload = 0.2
    states: set[EngineState] = set()
    async with employ(load="await asyncio.sleep(0.6)", speak="await asyncio.sleep(0.3)") as pool:

        async def watch() -> None:
            while True:
                states.add(pool.state)
                await asyncio.sleep(0.01)

        watching = asyncio.create_task(watch())
        assert await say(pool, *["abc"] * 4) == 12
        watching.cancel()
    assert EngineState.UNLOADED not in states


async def test_without_the_setting_it_never_rests(employ: Employ) -> None:
    async with employ() as pool:
        await pool.ready(10)
        pid = pool.pid
        await asyncio.sleep(1.5)
        assert pool.pid == pid


async def test_texts_that_come_as_it_goes_to_rest_are_all_spoken(employ: Employ, settings: Settings) -> None:
    settings.idle_unload = 0.05
    async with employ() as pool:
        for pause_s in (0.0, 0.03, 0.05, 0.06, 0.08, 0.2):
            await asyncio.sleep(pause_s)
            await pool.ready(10)
            assert list(await asyncio.gather(say(pool, "abc"), say(pool, "defg"))) == [3, 4]


async def test_one_that_does_not_come_back_in_time_is_a_clear_error(employ: Employ, settings: Settings) -> None:
    settings.idle_unload = 0.2
    slow_again = "import pathlib; seen = pathlib.Path('seen'); again = seen.exists(); seen.touch()"
    async with employ(load=f"{slow_again}; await asyncio.sleep(3 if again else 0)") as pool:
        await pool.ready(10)
        await until(lambda: pool.state is EngineState.UNLOADED)
        with pytest.raises(Loading, match="not ready yet"):
            await pool.ready(0.3)


# Taking over


async def test_another_takes_over_once_it_is_ready_and_nothing_is_cut(employ: Employ, settings: Settings) -> None:
    async with employ(load="await asyncio.sleep(0.5)", speak="await asyncio.sleep(0.2)") as pool:
        await pool.ready(10)
        old = psutil.Process(pool.pid)
        long = asyncio.create_task(say(pool, *["abc"] * 12))
        await asyncio.sleep(0.1)
        fresh = settings.model_copy(update={"slots": 5})
        prepared: list[int | None] = []

        async def prepare(members: Sequence[Supervisor]) -> None:
            prepared.extend(member.pid for member in members)
            assert pool.pid == old.pid

        switching = asyncio.create_task(pool.switch("s2", fresh, prepare))
        heard = 0
        while not switching.done():
            heard += await say(pool, "x")
            assert pool.state is EngineState.READY
        await switching
        assert heard
        assert prepared == [pool.pid]
        assert pool.engine is not None
        assert pool.engine.slots == 5
        assert pool.pid != old.pid
        assert old.is_running()
        assert await say(pool, "new") == 3
        assert await long == 36, "what the old one speaks, it speaks to its end"
        await until(lambda: not old.is_running())


async def test_one_that_does_not_start_changes_nothing(employ: Employ, settings: Settings) -> None:
    load = "import fishs2_daemon.errors as e\n        if self.options.slots == 7: raise e.EngineError('needs 9 GB')"
    async with employ(load=load) as pool:
        await pool.ready(10)
        pid = pool.pid
        with pytest.raises(EngineUnavailable, match="needs 9 GB"):
            await pool.switch("s2", settings.model_copy(update={"slots": 7}))
        assert pool.pid == pid
        assert pool.detail == "test is ready, 1 voices"
        assert await say(pool, "abc") == 3
        workers = [child for child in psutil.Process().children() if "worker.py" in str(child.cmdline())]
        assert [worker.pid for worker in workers] == [pid]


async def test_a_worker_that_is_restarted_has_the_options_it_had(employ: Employ, settings: Settings) -> None:
    async with employ() as pool:
        await pool.ready(10)
        settings.slots = 6  # not taken over: nobody switched
        psutil.Process(pool.pid).kill()
        await until(lambda: pool.pid is None)
        assert (await pool.ready(10)).slots == 3


async def test_one_that_rests_is_replaced_by_one_that_is_awake(employ: Employ, settings: Settings) -> None:
    settings.idle_unload = 0.2
    async with employ() as pool:
        await pool.ready(10)
        await until(lambda: pool.state is EngineState.UNLOADED)
        settings.idle_unload = 0.0
        await pool.switch("s2", settings.model_copy(update={"slots": 5}))
        assert pool.state is EngineState.READY
        assert (await pool.ready(1)).slots == 5


async def test_each_gpu_has_a_worker_and_the_idle_one_speaks(employ: Employ, settings: Settings) -> None:
    settings.gpu_device = [0, 1]
    async with employ(speak="await asyncio.sleep(0.3)") as pool:
        await pool.ready(10)
        await until(lambda: all(member.pid for member in pool.members))
        assert pool.engine is not None
        assert pool.engine.slots == 6
        first = pool.speak(Utterance("v", Phrases("abc", "def")))
        async with aclosing(first):
            await anext(first)
            assert sorted(member.running for member in pool.members) == [0, 1]
            second = asyncio.create_task(say(pool, "abc"))
            await asyncio.sleep(0.1)
            assert [member.running for member in pool.members] == [1, 1]
            await second
        assert [member.running for member in pool.members] == [0, 0]


async def test_who_was_lost_with_a_worker_is_spoken_by_the_idle_one(employ: Employ, settings: Settings) -> None:
    settings.gpu_device = [0, 1]
    once = "import pathlib; seen = pathlib.Path(f'seen{options.gpu_device}'); again = seen.exists(); seen.touch()"
    load = f"options = self.options; {once}; await asyncio.sleep(60 if again else 0)"
    async with employ(load=load, speak="await asyncio.sleep(1)") as pool:
        await pool.ready(10)
        await until(lambda: all(member.pid for member in pool.members))
        asking = asyncio.create_task(say(pool, "abc"))
        await until(lambda: any(member.running for member in pool.members))
        await asyncio.sleep(0.1)
        psutil.Process(next(member.pid for member in pool.members if member.running)).kill()
        assert await asking == 3


# Slots


@pytest.mark.parametrize(("old", "new"), [(8, 2), (1, 1)])
async def test_answers_of_retired_workers_take_no_slot_of_the_new_ones(
    employ: Employ, settings: Settings, old: int, new: int
) -> None:
    settings.slots, settings.queue_timeout_s = old, 2
    async with employ(speak=ENDLESS) as pool, served(pool, settings) as service:
        async with endless(service, min(old, 3)):
            await pool.switch("s2", settings.model_copy(update={"slots": new}))
            assert await heard(service, "Short.") == 6
            async with endless(service, new):
                pass
        await until(lambda: pool.slots == new)


async def test_who_waits_comes_in_when_workers_with_more_slots_take_over(employ: Employ, settings: Settings) -> None:
    settings.slots, settings.queue_timeout_s = 1, 3
    async with employ(speak=ENDLESS) as pool, served(pool, settings) as service, endless(service, 1):
        waiting = asyncio.create_task(heard(service, "Short."))
        await until(lambda: service.waiting == 1)
        await pool.switch("s2", settings.model_copy(update={"slots": 8}))
        assert await waiting == 6


async def test_a_successor_s_voices_are_warmed_though_all_slots_are_taken(
    employ: Employ, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings.slots, settings.warm_voices, settings.queue_timeout_s = 1, ["v"], 1
    caplog.set_level(logging.INFO)
    async with employ(load=CLONES, speak=ENDLESS) as pool, served(pool, settings) as service, endless(service, 1):
        await pool.switch("s2", settings.model_copy(update={"slots": 1}), service.warm)
        assert "the voice v is warm" in caplog.text


async def test_a_voice_that_found_no_slot_is_warmed_later(
    employ: Employ, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings.slots, settings.warm_voices, settings.queue_timeout_s = 1, ["v"], 0.1
    caplog.set_level(logging.INFO)
    async with employ(load=CLONES, speak=ENDLESS) as pool, served(pool, settings) as service:
        async with endless(service, 1):
            await service.warm(pool.members)
        assert "no slot became free" in caplog.text
        for _ in range(2):
            await service.warm(pool.members)
    assert caplog.text.count("the voice v is warm") == 1
