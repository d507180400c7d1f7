"""The worker's side of the wire."""

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator

import pytest

from fishs2_daemon.engines.base import Utterance
from fishs2_daemon.speech import EngineInfo, Pcm, Voice
from fishs2_daemon.text.phrase import Phrase
from fishs2_daemon.worker import wire
from fishs2_daemon.worker.child import Child
from fishs2_daemon.worker.wire import Frame, Kind


class Waiting:
    """An engine that waits for phrases that never come."""

    async def load(self, progress: object) -> EngineInfo:
        return self.info()

    def info(self) -> EngineInfo:
        return EngineInfo("waiting", 1000, 1, "v", (Voice("v", "", ("en",)),))

    async def speak(self, utterance: Utterance) -> AsyncGenerator[Pcm, None]:
        async for _ in utterance.phrases:
            yield Pcm(b"", 1000)

    async def close(self) -> None:
        pass


@pytest.fixture
async def daemon() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    child = Child(*await asyncio.open_connection(sock=theirs))
    child._engine = Waiting()
    running = asyncio.create_task(child.run())
    yield reader, writer
    writer.close()
    await asyncio.wait_for(running, 10)
    child._writer.close()


async def nothing() -> AsyncIterator[Phrase]:
    return
    yield


@pytest.mark.parametrize("later", [False, True])
async def test_a_cancelled_utterance_ends(
    daemon: tuple[asyncio.StreamReader, asyncio.StreamWriter], later: bool
) -> None:
    """Even one whose cancellation comes with its start, before anything of it has run."""
    reader, writer = daemon
    writer.write(wire.start_frame(7, Utterance("v", nothing())).encode())
    if later:
        await asyncio.sleep(0.05)
    writer.write(Frame(Kind.CANCEL, 7).encode())
    assert await asyncio.wait_for(wire.read_frame(reader), 10) == Frame(Kind.END, 7)
