"""One worker for each GPU: an utterance goes to the one that speaks the fewest."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace

from fishs2_daemon.engines.base import Utterance
from fishs2_daemon.errors import EngineUnavailable, Loading
from fishs2_daemon.metrics import Metrics
from fishs2_daemon.settings import Settings
from fishs2_daemon.speech import EngineInfo, EngineState, Pcm
from fishs2_daemon.worker.changes import Changes
from fishs2_daemon.worker.process import COMMAND
from fishs2_daemon.worker.supervisor import Supervisor

#: The more a worker can do now, or soon, the more its state is the pool's.
_BEST_FIRST = (
    EngineState.READY, EngineState.LOADING, EngineState.STARTING, EngineState.RESTARTING, EngineState.FAILED,
    EngineState.STOPPED,
)  # fmt: skip


class WorkerPool:
    """Run `run` as a task; it never ends by itself. With one worker it is that worker's supervisor."""

    def __init__(self, engine: str, settings: Settings, metrics: Metrics, *, command: Sequence[str] = COMMAND) -> None:
        self._changes = Changes()
        self._settings = settings
        self._metrics = metrics
        self._command = command
        self._fetching = ""
        self._succeeding = asyncio.Event()
        self._speaking = self._employ(engine)

    @property
    def members(self) -> tuple[Supervisor, ...]:
        return tuple(self._speaking)

    @property
    def state(self) -> EngineState:
        state = self._best.state
        return EngineState.LOADING if self._fetching and state is not EngineState.READY else state

    @property
    def detail(self) -> str:
        if not self._fetching:
            return self._work
        return f"{self._work}; {self._fetching}" if self._best.state is EngineState.READY else self._fetching

    @property
    def _work(self) -> str:
        if len(self.members) == 1:
            return self._best.detail
        ready = sum(member.state is EngineState.READY for member in self.members)
        return f"{ready} of {len(self.members)} workers: {self._best.detail}"

    @property
    def engine(self) -> EngineInfo | None:
        """What the engine said of itself, with the slots of all workers that are ready."""
        best = self._best.engine
        slots = sum(member.engine.slots for member in self.members if member.pid is not None and member.engine)
        return best if best is None or not slots else replace(best, slots=slots)

    @property
    def pid(self) -> int | None:
        """The process id of a worker that is ready."""
        return self._best.pid

    @property
    def is_live(self) -> bool:
        return bool(self._fetching) or any(member.is_live for member in self.members)

    async def run(self) -> None:
        while True:
            async with asyncio.TaskGroup() as tasks:
                lives = [tasks.create_task(member.run()) for member in self.members]
                await self._succeeding.wait()
                self._succeeding.clear()
                for life in lives:
                    life.cancel()

    def fetching(self, what: str) -> None:
        """Files of the engine are on their way, until `what` is empty: it is a part of the detail meanwhile."""
        self._fetching = what
        self._changes.announce()

    def become(self, engine: str) -> None:
        """Speak with `engine` from now on. Answers that run are cut off."""
        self._speaking = self._employ(engine)
        self._succeeding.set()
        self._changes.announce()

    async def ready(self, timeout_s: float) -> EngineInfo:
        """Wait for a worker. Raises `Loading` after `timeout_s`, `EngineUnavailable` when none starts."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._best.pid is None and self.state not in (EngineState.FAILED, EngineState.STOPPED):
                    await self._changes.wait()
        if self._best.pid is not None and (engine := self.engine):
            return engine
        if self.state in (EngineState.FAILED, EngineState.STOPPED):
            return await self._best.ready(0)
        raise Loading(f"the speech engine is not ready yet: {self.detail}", retry_after_s=5)

    async def speak(self, utterance: Utterance) -> AsyncGenerator[Pcm, None]:
        """As `Supervisor.speak`, by the worker that is ready and has the least to do."""
        speaking = self._speaking
        member = min(speaking, key=lambda member: (member.pid is None, speaking[member]))
        speaking[member] += 1
        try:
            async with aclosing(member.speak(utterance)) as blocks:
                async for block in blocks:
                    yield block
        except EngineUnavailable:
            if self._speaking is speaking:
                raise
            raise Loading("another engine takes over; try again", retry_after_s=5) from None
        finally:
            speaking[member] -= 1

    async def refresh(self) -> None:
        """Ask the workers for their voices again, where there are any."""
        for member in self.members:
            await member.refresh()

    async def wait_for_change(self, timeout_s: float) -> None:
        """Until the state of a worker or its detail changes, or the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changes.wait()

    @property
    def _best(self) -> Supervisor:
        return min(self.members, key=lambda member: (member.pid is None, _BEST_FIRST.index(member.state)))

    def _employ(self, engine: str) -> dict[Supervisor, int]:
        # Only the S2 engine computes on a device.
        devices = self._settings.gpu_device if engine == "s2" else self._settings.gpu_device[:1]
        return {
            Supervisor(
                engine, self._settings, self._metrics, gpu_device=device, on_change=self._changes.announce,
                command=self._command,
            ): 0
            for device in devices
        }  # fmt: skip
