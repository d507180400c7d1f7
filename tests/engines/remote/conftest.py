import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from fishs2_daemon.engines.base import EngineOptions, Utterance
from fishs2_daemon.engines.remote.engine import RemoteEngine
from fishs2_daemon.engines.remote.request import DEADLINES, Deadlines
from fishs2_daemon.speech import Pcm
from fishs2_daemon.text.phrase import Phrase
from tests.engines.remote.server import SpeechServer, serving

#: A test is over before a person would notice.
QUICK = replace(
    DEADLINES, connect_s=1, first_audio_s=0.6, gap_s=0.6, patience_s=1.5, health_s=1, health_every_s=0.05,
    voices_every_s=0.05, meeting_s=2, settling_s=0.3,
)  # fmt: skip


class Phrases:
    """Whole phrases, then the end, or what is put later."""

    def __init__(self, phrases: Iterable[str], *, ends: bool = True) -> None:
        self._queue: asyncio.Queue[Phrase | None] = asyncio.Queue()
        for phrase in phrases:
            self.put(phrase)
        if ends:
            self.end()

    def put(self, phrase: str) -> None:
        self._queue.put_nowait(phrase if isinstance(phrase, Phrase) else Phrase(phrase))

    def end(self) -> None:
        self._queue.put_nowait(None)

    def __aiter__(self) -> "Phrases":
        return self

    async def __anext__(self) -> Phrase:
        if (phrase := await self._queue.get()) is None:
            raise StopAsyncIteration
        return phrase


@dataclass
class Remote:
    """A loaded engine over servers."""

    engine: RemoteEngine
    servers: tuple[SpeechServer, ...]

    async def blocks(self, *phrases: str, voice: str = "default", **utterance: Any) -> list[Pcm]:
        async with aclosing(self.engine.speak(Utterance(voice, Phrases(phrases), **utterance))) as blocks:
            return [block async for block in blocks]

    async def says(self, *phrases: str, **utterance: Any) -> bytes:
        return b"".join([block.samples for block in await self.blocks(*phrases, **utterance)])


Start = Callable[..., Awaitable[Remote]]


@asynccontextmanager
async def loaded(
    *servers: SpeechServer, deadlines: Deadlines = QUICK, extra_urls: tuple[str, ...] = (), **options: Any
) -> AsyncIterator[Remote]:
    async with serving(*servers):
        urls = (*(server.url for server in servers), *extra_urls)
        engine = RemoteEngine(EngineOptions(remote_urls=urls, remote_model="m", **options), deadlines)
        await engine.load(lambda what, fraction: None)
        try:
            yield Remote(engine, servers)
        finally:
            await engine.close()
            left = [task for task in asyncio.all_tasks() if "remote" in repr(task.get_coro()) and not task.done()]
            assert not [task for task in left if "engine" in repr(task)], left


@pytest.fixture
def server() -> SpeechServer:
    return SpeechServer()


@pytest.fixture
async def remote(server: SpeechServer) -> AsyncIterator[Remote]:
    async with loaded(server) as remote:
        yield remote
