"""The workers of one engine with one set of options: a process for each GPU."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from fishs2_daemon.speech import EngineInfo, EngineState
from fishs2_daemon.worker.supervisor import Supervisor

#: The more a worker can do now, or soon, the more its state is the crew's.
_BEST_FIRST = (
    EngineState.READY, EngineState.LOADING, EngineState.STARTING, EngineState.RESTARTING, EngineState.FAILED,
    EngineState.STOPPED,
)  # fmt: skip


class Crew:
    """At least one member. Its processes run from `start` to `stop`."""

    def __init__(self, members: Sequence[Supervisor]) -> None:
        self.members = tuple(members)
        for member in self.members:
            member.relief = lambda: self.least_busy
        self._lives: list[asyncio.Task[None]] = []

    @property
    def best(self) -> Supervisor:
        return min(self.members, key=lambda member: (member.pid is None, _BEST_FIRST.index(member.state)))

    @property
    def least_busy(self) -> Supervisor:
        """The one that is ready and speaks the fewest."""
        return min(self.members, key=lambda member: (member.pid is None, member.running))

    @property
    def running(self) -> int:
        return sum(member.running for member in self.members)

    def start(self, tasks: asyncio.TaskGroup) -> None:
        self._lives = [tasks.create_task(member.run()) for member in self.members]

    async def stop(self) -> None:
        """End the processes, whatever they do."""
        for life in self._lives:
            life.cancel()
        await asyncio.gather(*self._lives, return_exceptions=True)

    async def ready(self, timeout_s: float) -> EngineInfo:
        """Until every member is ready or has failed. Raises `Loading` or `EngineUnavailable` where all of them do."""
        outcomes = await asyncio.gather(*(member.ready(timeout_s) for member in self.members), return_exceptions=True)
        failure: BaseException | None = None
        for outcome in outcomes:
            if isinstance(outcome, EngineInfo):
                return outcome
            failure = failure or outcome
        assert failure is not None  # noqa: S101 - there is a member, and it has no info
        raise failure

    async def finished(self, timeout_s: float) -> None:
        """Until nobody speaks, or the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for member in self.members:
                    await member.quiet()
