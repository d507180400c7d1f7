"""The crew that speaks: an utterance goes to the worker that speaks the fewest.

A crew without work may be sent home, and the next request calls it back (`FISHS2_IDLE_UNLOAD`); another one may take
over, once it is ready.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace

from fishs2_daemon.engines.base import Utterance
from fishs2_daemon.errors import Loading
from fishs2_daemon.metrics import Metrics
from fishs2_daemon.settings import Settings
from fishs2_daemon.speech import EngineInfo, EngineState, Pcm
from fishs2_daemon.worker.changes import Changes
from fishs2_daemon.worker.crew import Crew
from fishs2_daemon.worker.process import COMMAND, engine_options
from fishs2_daemon.worker.supervisor import Supervisor

#: Engines that compute on a device: each of them gets a worker.
_ON_DEVICES = ("s2", "s2cpp")

#: How often the time without work is looked at, at the most.
_LOOK_S = 1.0

_Members = Sequence[Supervisor]


async def _as_it_is(members: _Members) -> None:
    pass


class WorkerPool:
    """Run `run` as a task; it never ends by itself.

    `chosen` is the name of the engine that its workers are for.
    """

    def __init__(self, engine: str, settings: Settings, metrics: Metrics, *, command: Sequence[str] = COMMAND) -> None:
        self.chosen = engine
        #: This daemon among all others.
        self.instance = secrets.token_hex(8)
        #: Of whoever decides which engine speaks.
        self.turn = asyncio.Lock()
        self._changes = Changes()
        self._settings = settings
        self._metrics = metrics
        self._command = command
        self._fetching = ""
        self._successor: Crew | None = None
        self._retired: set[Crew] = set()
        self._tasks: asyncio.TaskGroup | None = None
        self._hire: Callable[[], Crew] = lambda: self._crew_of(engine, settings)
        self._crew = self._hire()
        self._known: EngineInfo | None = None
        self._is_unloaded = False
        self._used_at = 0.0

    @property
    def members(self) -> _Members:
        return self._crew.members

    @property
    def state(self) -> EngineState:
        if self._is_unloaded:
            return EngineState.UNLOADED
        state = self._crew.best.state
        return EngineState.LOADING if self._fetching and state is not EngineState.READY else state

    @property
    def detail(self) -> str:
        if self._successor:
            return f"{self._work}; next: {self._successor.best.detail}"
        if not self._fetching:
            return self._work
        return f"{self._work}; {self._fetching}" if self._crew.best.state is EngineState.READY else self._fetching

    @property
    def _work(self) -> str:
        if self._is_unloaded:
            return "unloaded, as nobody spoke for a while; the next request loads it"
        best = self._crew.best.detail
        if len(self.members) == 1:
            return best
        ready = sum(member.state is EngineState.READY for member in self.members)
        return f"{ready} of {len(self.members)} workers: {best}"

    @property
    def engine(self) -> EngineInfo | None:
        """What the engine said of itself when it was last ready, with the slots of all workers that are ready."""
        best = self._crew.best.engine or self._known
        slots = sum(member.engine.slots for member in self.members if member.pid is not None and member.engine)
        return best if best is None or not slots else replace(best, slots=slots)

    @property
    def slots(self) -> int:
        """Texts that may be spoken at a time, those included that workers speak which another crew has replaced."""
        return (self.engine.slots if self.engine else 1) + sum(crew.running for crew in self._retired)

    @property
    def pid(self) -> int | None:
        """The process id of a worker that is ready."""
        return self._crew.best.pid

    @property
    def is_live(self) -> bool:
        return bool(self._fetching) or self._is_unloaded or any(member.is_live for member in self.members)

    async def run(self, prepare: Callable[[], Awaitable[None]] | None = None) -> None:
        """The first crew starts behind `prepare`, unless another one has taken over until then."""
        async with asyncio.TaskGroup() as self._tasks:
            if prepare is None:
                self._crew.start(self._tasks)
            else:
                self._tasks.create_task(self._start_after(prepare, self._crew, self._tasks))
            while True:
                await self.wait_for_change(await self._unload_when_idle())

    def fetching(self, what: str) -> None:
        """Files of the engine are on their way, until `what` is empty: it is a part of the detail meanwhile."""
        self._fetching = what
        self._changes.announce()

    async def switch(
        self,
        engine: str,
        settings: Settings,
        prepare: Callable[[_Members], Awaitable[None]] = _as_it_is,
    ) -> None:
        """Speak with `engine` under these `settings`, as soon as its workers are ready and prepared; until then, and to
        the end of what they speak, the ones of now go on.

        Hold `turn` meanwhile; `run` runs. Raises `Loading` or `EngineUnavailable` when it does not start; then all is
        as it was.
        """
        assert self._tasks is not None  # noqa: S101 - said above

        def hire() -> Crew:
            return self._crew_of(engine, settings)

        self._successor = crew = hire()
        crew.start(self._tasks)
        try:
            await crew.ready(self._settings.worker_start_timeout_s)
            await prepare(crew.members)
        except BaseException:
            await crew.stop()
            raise
        finally:
            self._successor = None
        self._retired.add(self._crew)
        self._tasks.create_task(self._retire(self._crew))
        self._crew, self._hire, self.chosen = crew, hire, engine
        self._is_unloaded = False
        self._use()
        self._changes.announce()

    async def ready(self, timeout_s: float) -> EngineInfo:
        """Wait for a worker. Raises `Loading` after `timeout_s`, `EngineUnavailable` when none starts."""
        self._load_again()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._crew.best.pid is None and self.state not in (EngineState.FAILED, EngineState.STOPPED):
                    await self._changes.wait()
        if self._crew.best.pid is not None and (engine := self.engine):
            return engine
        if self.state in (EngineState.FAILED, EngineState.STOPPED):
            return await self._crew.best.ready(0)
        raise Loading(f"the speech engine is not ready yet: {self.detail}", retry_after_s=5)

    async def speak(self, utterance: Utterance) -> AsyncGenerator[Pcm, None]:
        """As `Supervisor.speak`, by the worker that is ready and has the least to do."""
        self._load_again()
        try:
            async with aclosing(self._crew.least_busy.speak(utterance)) as blocks:
                async for block in blocks:
                    yield block
        finally:
            self._use()

    async def refresh(self) -> None:
        """Ask the workers for their voices again, where there are any."""
        for member in self.members:
            await member.refresh()

    async def wait_for_change(self, timeout_s: float) -> None:
        """Until the state of a worker or its detail changes, or the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changes.wait()

    def _crew_of(self, engine: str, settings: Settings) -> Crew:
        """With the options of now: a worker that comes back is as it was."""
        devices = settings.gpu_device if engine in _ON_DEVICES else settings.gpu_device[:1]
        return Crew(
            [
                Supervisor(
                    engine, self._settings, self._metrics, options=engine_options(settings, device, self.instance),
                    on_change=self._changes.announce, command=self._command,
                )
                for device in devices
            ]
        )  # fmt: skip

    async def _start_after(self, prepare: Callable[[], Awaitable[None]], crew: Crew, tasks: asyncio.TaskGroup) -> None:
        await prepare()
        if crew is self._crew:
            crew.start(tasks)

    async def _retire(self, crew: Crew) -> None:
        try:
            await crew.finished(self._settings.total_timeout_s)
            await crew.stop()
        finally:
            self._retired.remove(crew)

    def _use(self) -> None:
        self._used_at = asyncio.get_running_loop().time()

    def _load_again(self) -> None:
        self._use()
        if self._is_unloaded and self._tasks is not None:
            self._is_unloaded = False
            self._crew.start(self._tasks)
            self._changes.announce()

    async def _unload_when_idle(self) -> float:
        """Seconds until it is worth to look again."""
        longest_s = self._settings.idle_unload
        if not longest_s or self._is_unloaded:
            return _LOOK_S
        if self._crew.running or self._crew.best.pid is None:
            self._use()
        left_s = self._used_at + longest_s - asyncio.get_running_loop().time()
        if left_s > 0:
            return min(left_s, _LOOK_S)
        unloaded, self._known = self._crew, self.engine
        self._crew, self._is_unloaded = self._hire(), True
        self._changes.announce()
        await unloaded.stop()
        return _LOOK_S
