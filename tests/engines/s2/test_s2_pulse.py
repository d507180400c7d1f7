"""A thread that hangs, and threads that do not."""

import asyncio

import pytest

from fishs2_daemon.engines.s2 import pulse
from fishs2_daemon.engines.s2.pulse import Pulse, end_if_hung


class Ended(Exception):
    pass


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(status: int) -> None:
        raise Ended(status)

    monkeypatch.setattr(pulse.os, "_exit", end)
    monkeypatch.setattr(pulse, "_HUNG_S", 0.05)
    monkeypatch.setattr(pulse, "_LOOK_S", 0.01)


async def test_one_that_hangs_ends_the_process() -> None:
    well, hung = Pulse(), Pulse()
    with hung, pytest.raises(Ended, match="71"):
        await asyncio.wait_for(end_if_hung([well, hung]), 5)


async def test_neither_rest_nor_work_does() -> None:
    idle, busy = Pulse(), Pulse()
    watching = asyncio.create_task(end_if_hung([idle, busy]))
    for _ in range(60):
        with busy:
            await asyncio.sleep(0.005)
    assert not watching.done()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
