"""The real child program with engines that a test writes."""

from contextlib import aclosing

from fishs2_daemon.engines.base import Utterance
from fishs2_daemon.text.phrase import Phrase
from fishs2_daemon.worker.pool import WorkerPool
from fishs2_daemon.worker.supervisor import Supervisor

#: A worker program whose engine is written by the test: it says each phrase as that many samples.
PROGRAM = """
import asyncio, os, sys, time
from fishs2_daemon.errors import Busy, EngineError
from fishs2_daemon.speech import EngineInfo, Pcm, Voice
from fishs2_daemon.worker import child

INFO = EngineInfo("test", 1000, 2, "v", (Voice("v", "V", ("en",)),))

class Engine:
    def __init__(self, options):
        pass

    async def load(self, progress):
        {load}
        return INFO

    def info(self):
        return EngineInfo("test", 1000, 2, "v", (Voice("v", "V", ("en",)), Voice("w", "W", ("de",))))

    async def speak(self, utterance):
        async for phrase in utterance.phrases:
            {speak}
            yield Pcm(bytes(2 * len(phrase)), 1000)

sys.modules["test_engine"] = sys.modules["__main__"]
child.ENGINES["test"] = "test_engine:Engine"
child.main()
"""


class Phrases:
    def __init__(self, *phrases: str) -> None:
        self._left = [Phrase(text) for text in phrases]

    def __aiter__(self) -> "Phrases":
        return self

    async def __anext__(self) -> Phrase:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop(0)


async def say(worker: Supervisor | WorkerPool, *phrases: str) -> int:
    """Samples heard."""
    heard = 0
    async with aclosing(worker.speak(Utterance("v", Phrases(*phrases)))) as blocks:
        async for block in blocks:
            assert block.sample_rate == 1000
            heard += len(block.samples) // 2
    return heard
