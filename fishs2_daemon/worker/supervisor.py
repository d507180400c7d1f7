"""Keeps one worker alive and hands utterances to it. Its `options` stay what they were when it was made.

A worker that dies is started again: at once the first time, then with a growing pause. An utterance that had sent no
audio yet is replayed on the next worker, once; one that had fails with `WorkerCrashed`, because its listener would
hear the beginning twice.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any, Self

from fishs2_daemon.engines.base import Utterance
from fishs2_daemon.errors import EngineUnavailable, Loading, WorkerCrashed
from fishs2_daemon.metrics import Metrics
from fishs2_daemon.settings import Settings
from fishs2_daemon.speech import EngineInfo, EngineState, Pcm
from fishs2_daemon.text.phrase import Phrase
from fishs2_daemon.worker.changes import Changes
from fishs2_daemon.worker.process import COMMAND, WorkerGone, WorkerProcess

_log = logging.getLogger(__name__)

#: Pause before the second restart in a row, doubled up to the cap. The cap lies below `queue_timeout_s`, so that a
#: request which comes during a pause is still spoken.
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 8.0

#: A worker that lived this long was healthy: the next restart is at once again.
_HEALTHY_S = 30.0

#: Starts in a row that never got ready, after which requests are refused with the reason instead of waiting.
_FAILURES_BEFORE_REFUSING = 2

_RUNS_PER_UTTERANCE = 2


class _Phrases:
    """Phrases that can be read again from the first one. The source's `__anext__` must survive cancellation."""

    def __init__(self, source: AsyncIterator[Phrase]) -> None:
        self.source = source
        self.seen: list[Phrase] = []

    def again(self) -> "_Reading":
        return _Reading(self)


class _Reading:
    """An iterator and not a generator: one that is cancelled or dropped leaves nothing behind."""

    def __init__(self, phrases: _Phrases) -> None:
        self._phrases = phrases
        self._index = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Phrase:
        if self._index == len(self._phrases.seen):
            self._phrases.seen.append(await anext(self._phrases.source))
        self._index += 1
        return self._phrases.seen[self._index - 1]


class Supervisor:
    """Run `run` as a task; it never ends by itself."""

    def __init__(
        self,
        engine: str,
        settings: Settings,
        metrics: Metrics,
        *,
        options: Mapping[str, Any],
        on_change: Callable[[], None] = lambda: None,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.state = EngineState.STARTING
        self.detail = "starting"
        self.engine: EngineInfo | None = None
        self.running = 0
        self._name = engine
        self._settings = settings
        self._metrics = metrics
        self._options = options
        self._on_change = on_change
        self._command = command
        self._worker: WorkerProcess | None = None
        self._failures = 0
        self._changes = Changes()
        #: Who speaks again what was lost with this worker.
        self.relief: Callable[[], Supervisor] = lambda: self

    @property
    def pid(self) -> int | None:
        """The worker's process id while it is ready."""
        return self._worker.pid if self._worker else None

    @property
    def is_live(self) -> bool:
        """Whether the worker is ready, or on the way there without having failed."""
        return self.state in (EngineState.READY, EngineState.STARTING, EngineState.LOADING, EngineState.RESTARTING)

    async def run(self) -> None:
        pause_s = 0.0
        loop = asyncio.get_running_loop()
        try:
            while True:
                started = loop.time()
                await self._run_once()
                self._metrics.restarts.inc()
                pause_s = 0.0 if loop.time() - started > _HEALTHY_S else pause_s
                await asyncio.sleep(pause_s)
                pause_s = min(max(2 * pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
        finally:
            self._worker = None
            self._set(EngineState.STOPPED, "stopped")

    async def ready(self, timeout_s: float) -> EngineInfo:
        """Wait for the engine. Raises `Loading` after `timeout_s`, `EngineUnavailable` when it does not start."""
        if self._worker and self.engine:
            return self.engine
        try:
            async with asyncio.timeout(timeout_s):
                while not self._worker and self.state not in (EngineState.FAILED, EngineState.STOPPED):
                    await self._changes.wait()
        except TimeoutError:
            raise Loading(f"the speech engine is not ready yet: {self.detail}", retry_after_s=5) from None
        if self._worker and self.engine:
            return self.engine
        raise EngineUnavailable(f"the speech engine does not start: {self.detail}", retry_after_s=30)

    async def speak(self, utterance: Utterance) -> AsyncGenerator[Pcm, None]:
        """Raises `WorkerCrashed`, `EngineError`, `Busy`, `Loading`, `EngineUnavailable`, or what the phrases raised."""
        self.running += 1
        try:
            async with aclosing(self._speak(utterance)) as blocks:
                async for block in blocks:
                    yield block
        finally:
            self.running -= 1
            self._changes.announce()

    async def quiet(self) -> None:
        """Until it speaks nothing."""
        while self.running:
            await self._changes.wait()

    async def refresh(self) -> None:
        """Ask the worker for its voices again, where there is one."""
        if self._worker:
            with suppress(EngineUnavailable):  # one that ends meanwhile comes back with them
                self.engine = await self._worker.refresh()

    async def _speak(self, utterance: Utterance) -> AsyncGenerator[Pcm, None]:
        replayable = _Phrases(utterance.phrases)
        spoken = False
        for run in range(1, _RUNS_PER_UTTERANCE + 1):
            speaker = self if run == 1 else self.relief()
            await speaker.ready(self._settings.queue_timeout_s)
            if (worker := speaker._worker) is None:
                continue
            try:
                async with aclosing(worker.speak(replace(utterance, phrases=replayable.again()))) as blocks:
                    async for block in blocks:
                        spoken = True
                        yield block
                return
            except WorkerGone as gone:
                if speaker._worker is worker:
                    speaker._worker = None  # `run` has not noticed yet
                if spoken or run == _RUNS_PER_UTTERANCE:
                    raise WorkerCrashed(f"{gone}; try again") from None
                _log.warning("replaying an utterance: %s", gone)
        raise WorkerCrashed("the speech engine crashed; try again")

    async def _run_once(self) -> None:
        """One life of a worker: start, load, serve, end."""
        restarting = self.engine is not None or self._failures > 0
        if self._failures < _FAILURES_BEFORE_REFUSING:
            self._set(EngineState.RESTARTING if restarting else EngineState.STARTING, "starting the engine")
        spawning = asyncio.ensure_future(WorkerProcess.spawn(self._settings, self._command))
        try:
            await _to_the_end(spawning)
            worker = spawning.result()
        except asyncio.CancelledError:
            if not spawning.exception():
                await _to_the_end(asyncio.ensure_future(spawning.result().end()))
            raise
        except OSError as error:
            self._failed(f"cannot start the worker: {error}")
            return
        serving = asyncio.create_task(worker.serve())
        try:
            try:
                async with asyncio.timeout(self._settings.worker_start_timeout_s):
                    self.engine = await worker.load(self._name, self._options, self._loading)
            except (EngineUnavailable, TimeoutError) as error:
                if isinstance(error, TimeoutError):
                    worker.kill(f"not ready within {self._settings.worker_start_timeout_s:.0f} s")
                self._failed(str(error) or "the engine took too long to load")
                return
            self._failures = 0
            self._worker = worker
            self._set(EngineState.READY, f"{self.engine.name} is ready, {len(self.engine.voices)} voices")
            await asyncio.shield(serving)
        finally:
            self._worker = None
            serving.cancel()
            await _to_the_end(serving)
        _log.error("the worker (pid %d) is gone", worker.pid)
        self._set(EngineState.RESTARTING, "the engine crashed and is being restarted")

    def _failed(self, reason: str) -> None:
        self._failures += 1
        _log.error("the engine does not start (%d in a row): %s", self._failures, reason)
        if self._failures >= _FAILURES_BEFORE_REFUSING:
            self._set(EngineState.FAILED, reason)
        else:
            self._set(EngineState.RESTARTING, reason)

    def _loading(self, what: str, fraction: float) -> None:
        if self.state is not EngineState.FAILED:
            self._set(EngineState.LOADING, f"{what} {fraction:.0%}")

    def _set(self, state: EngineState, detail: str) -> None:
        self.state, self.detail = state, detail
        self._changes.announce()
        self._on_change()


async def _to_the_end(task: asyncio.Future[Any]) -> None:
    """Wait for what must not be left half done; a cancellation that comes meanwhile is passed on afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled:
        raise cancelled
