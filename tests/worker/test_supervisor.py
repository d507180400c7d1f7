"""The supervisor against workers that misbehave: the real child program with engines that hang, crash and lie."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import psutil
import pytest

from fishs2_daemon import configuration
from fishs2_daemon.engines.base import Utterance
from fishs2_daemon.errors import Busy, EngineError, EngineUnavailable, Loading, WorkerCrashed
from fishs2_daemon.metrics import Metrics
from fishs2_daemon.settings import Settings
from fishs2_daemon.speech import EngineState
from fishs2_daemon.worker import wire
from fishs2_daemon.worker.process import WorkerProcess, engine_options
from fishs2_daemon.worker.supervisor import Supervisor
from tests.worker.harness import PROGRAM, Phrases, say

Start = Callable[..., "asyncio.AbstractAsyncContextManager[Supervisor]"]  # type: ignore[name-defined]


@pytest.fixture
def settings() -> Settings:
    return configuration.load(queue_timeout_s=5)


@pytest.fixture
def supervise(tmp_path: Path, settings: Settings):  # type: ignore[no-untyped-def]
    @asynccontextmanager
    async def begin(*, load: str = "pass", speak: str = "pass", program: str = PROGRAM) -> AsyncIterator[Supervisor]:
        script = tmp_path / "worker.py"
        script.write_text(program.replace("{load}", load).replace("{speak}", speak))
        supervisor = Supervisor(
            "test", settings, Metrics(), options=engine_options(settings, 0), command=(sys.executable, str(script))
        )
        running = asyncio.create_task(supervisor.run())
        try:
            yield supervisor
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            assert supervisor.state is EngineState.STOPPED

    return begin


async def test_a_ready_worker_speaks_and_reports_its_engine(supervise) -> None:  # type: ignore[no-untyped-def]
    async with supervise() as supervisor:
        engine = await supervisor.ready(10)
        assert engine.name == "test"
        assert [voice.id for voice in engine.voices] == ["v"]
        assert supervisor.state is EngineState.READY
        assert await say(supervisor, "abc", "defgh") == 8
        await supervisor.refresh()
        assert [voice.id for voice in supervisor.engine.voices] == ["v", "w"]


async def test_a_worker_that_ends_as_it_is_asked_for_its_voices_is_no_error(supervise) -> None:  # type: ignore[no-untyped-def]
    async with supervise() as supervisor:
        await supervisor.ready(10)
        os.kill(supervisor.pid, signal.SIGKILL)
        await supervisor.refresh()
        assert await say(supervisor, "abc") == 3


async def test_progress_of_loading_is_passed_on(supervise) -> None:  # type: ignore[no-untyped-def]
    async with supervise(load="progress('reading the model', 0.42); await asyncio.sleep(0.5)") as supervisor:
        async with asyncio.timeout(10):
            while supervisor.state is not EngineState.LOADING:
                await asyncio.sleep(0.02)
        assert supervisor.detail == "reading the model 42%"
        with pytest.raises(Loading, match="42%"):
            await supervisor.ready(0.05)
        await supervisor.ready(10)


async def test_an_engine_that_does_not_load_is_refused_with_its_own_words(supervise) -> None:  # type: ignore[no-untyped-def]
    async with supervise(load="raise EngineError('needs 6.2 GB, 4.0 GB are free')") as supervisor:
        with pytest.raises(EngineUnavailable, match=r"needs 6.2 GB, 4.0 GB are free"):
            await say(supervisor, "x")
        assert supervisor.state is EngineState.FAILED
        assert not supervisor.is_live
        began = asyncio.get_running_loop().time()
        with pytest.raises(EngineUnavailable):
            await supervisor.ready(5)
        assert asyncio.get_running_loop().time() - began < 1, "refused at once, not after the wait"


@pytest.mark.parametrize("load", ["os._exit(3)", "os.abort()", "raise ValueError('x')", "sys.stderr.close(); 1/0"])
async def test_a_worker_that_dies_while_it_loads_is_a_failure(supervise, load: str) -> None:  # type: ignore[no-untyped-def]
    async with supervise(load=load) as supervisor:
        with pytest.raises(EngineUnavailable):
            await supervisor.ready(10)


async def test_a_worker_that_never_gets_ready_is_given_up(supervise, settings: Settings) -> None:  # type: ignore[no-untyped-def]
    settings.worker_start_timeout_s = 0.3
    async with supervise(load="await asyncio.sleep(60)") as supervisor:
        with pytest.raises(EngineUnavailable):
            await supervisor.ready(10)


async def test_a_program_that_cannot_be_started_is_a_failure(settings: Settings) -> None:
    supervisor = Supervisor(
        "test", settings, Metrics(), options=engine_options(settings, 0), command=("/nonexistent/program",)
    )
    running = asyncio.create_task(supervisor.run())
    with pytest.raises(EngineUnavailable, match="cannot start the worker"):
        await supervisor.ready(10)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_worker_that_sends_garbage_is_replaced(supervise) -> None:  # type: ignore[no-untyped-def]
    program = "import os, sys, time; os.write(int(sys.argv[1]), b'\\xff' * 5000); time.sleep(60)"
    async with supervise(program=program) as supervisor:
        with pytest.raises(EngineUnavailable, match="cannot be read"):
            await supervisor.ready(10)


async def test_an_error_of_one_utterance_leaves_the_worker_alone(supervise) -> None:  # type: ignore[no-untyped-def]
    speak = "if phrase == 'bad': raise EngineError('not this one')\n            if phrase == 'bug': 1 / 0"
    async with supervise(speak=speak) as supervisor:
        await supervisor.ready(10)
        pid = supervisor.pid
        with pytest.raises(EngineError, match="not this one"):
            await say(supervisor, "good", "bad")
        with pytest.raises(EngineError, match="ZeroDivisionError"):
            await say(supervisor, "bug")
        assert await say(supervisor, "good") == 4
        assert supervisor.pid == pid


async def test_an_engine_that_is_busy_says_when_to_come_back(supervise) -> None:  # type: ignore[no-untyped-def]
    async with supervise(speak="raise Busy('all are taken', retry_after_s=7)") as supervisor:
        with pytest.raises(Busy, match="all are taken") as raised:
            await say(supervisor, "anything")
        assert raised.value.retry_after_s == 7


async def test_a_text_that_kills_every_worker_is_given_up_and_the_next_one_speaks(supervise) -> None:  # type: ignore[no-untyped-def]
    async with supervise(speak="if phrase == 'poison': os.abort()") as supervisor:
        with pytest.raises(WorkerCrashed, match="signal 6"):
            await say(supervisor, "poison")
        assert await say(supervisor, "fine") == 4
        assert supervisor._metrics.restarts._value.get() == 2


async def test_an_utterance_that_was_heard_is_not_replayed(supervise) -> None:  # type: ignore[no-untyped-def]
    async with supervise(speak="if phrase == 'poison': await asyncio.sleep(0.2); os.abort()") as supervisor:
        heard = 0
        with pytest.raises(WorkerCrashed):  # noqa: PT012 - the loop is what is tested
            async with aclosing(supervisor.speak(Utterance("v", Phrases("first", "poison")))) as blocks:
                async for block in blocks:
                    heard += len(block.samples) // 2
        assert heard == 5


async def test_an_answer_that_does_not_stop_when_told_costs_the_worker_its_life(supervise, settings: Settings) -> None:  # type: ignore[no-untyped-def]
    settings.cancel_timeout_s = 0.3
    deaf = """
            if phrase == 'deaf':
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    await asyncio.sleep(60)"""
    async with supervise(speak=deaf) as supervisor:
        await supervisor.ready(10)
        worker = psutil.Process(supervisor.pid)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(say(supervisor, "deaf"), 0.2)
        async with asyncio.timeout(10):
            while supervisor.pid in (worker.pid, None):
                await asyncio.sleep(0.02)
        assert await say(supervisor, "fine") == 4


async def test_a_worker_whose_loop_is_blocked_is_killed(supervise, settings: Settings) -> None:  # type: ignore[no-untyped-def]
    settings.worker_hang_timeout_s = 1
    async with supervise(speak="if phrase == 'hang': time.sleep(60)") as supervisor:
        with pytest.raises(WorkerCrashed, match="no sign of life"):
            await say(supervisor, "first", "hang")
        assert await say(supervisor, "fine") == 4


async def test_audio_ahead_of_the_listener_is_bounded(supervise) -> None:  # type: ignore[no-untyped-def]
    async with supervise(speak="phrase = 'x' * 100_000") as supervisor:
        blocks = supervisor.speak(Utterance("v", Phrases(*["more"] * 50)))
        await anext(blocks)
        await asyncio.sleep(0.5)
        (answer,) = supervisor._worker._answers.values()
        assert sum(len(block.samples) for block in answer._blocks) <= wire.WINDOW_BYTES
        # A listener that takes its time hinders nobody.
        assert await say(supervisor, "quick") == 100_000
        heard = 0
        async for block in blocks:
            heard += len(block.samples) // 2
        assert heard > 4_900_000


async def test_the_worker_does_not_see_what_is_the_daemon_s_own(supervise, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "CREDENTIALS_DIRECTORY", "FISHS2_API_KEYS"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("HARMLESS", "kept")
    async with supervise() as supervisor:
        await supervisor.ready(10)
        environment = psutil.Process(supervisor.pid).environ()
        assert "secret" not in environment.values()
        assert environment["HARMLESS"] == "kept"


async def test_the_worker_ends_with_its_daemon_even_when_that_is_killed(tmp_path: Path) -> None:
    daemon = tmp_path / "daemon.py"
    daemon.write_text(
        "import asyncio\n"
        "from fishs2_daemon import configuration\n"
        "from fishs2_daemon.daemon import running_service\n"
        "async def main():\n"
        "    async with running_service(configuration.load()) as (_, supervisor):\n"
        "        await supervisor.ready(10)\n"
        "        print(supervisor.pid, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, str(daemon), stdout=asyncio.subprocess.PIPE)
    assert process.stdout
    worker = psutil.Process(int(await process.stdout.readline()))
    # Even a stopped worker, which cannot notice that its socket was closed.
    worker.suspend()
    os.kill(process.pid, 9)
    await asyncio.wait_for(process.communicate(), 10)  # to the end of its output, too: else its transport stays open
    await asyncio.sleep(0)
    gone, alive = psutil.wait_procs([worker], timeout=5)
    assert not alive, gone


async def test_whenever_its_start_is_given_up_nothing_is_left(settings: Settings) -> None:
    """A process that is left behind has a transport that nobody closes, of which Python warns."""
    command = [sys.executable, "-c", "import sys, socket; socket.socket(fileno=int(sys.argv[1])).recv(1)"]
    before = set(psutil.Process().children())
    for step in range(60):
        starting = asyncio.create_task(WorkerProcess.spawn(settings, command))
        await asyncio.sleep(step / 10_000)
        starting.cancel()
        outcome = (await asyncio.gather(starting, return_exceptions=True))[0]
        if isinstance(outcome, WorkerProcess):
            await outcome.end()
        assert set(psutil.Process().children()) == before
