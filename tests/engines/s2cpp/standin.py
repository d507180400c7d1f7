"""The stand-in as its tests see it, and what it says, computed once more."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fishs2_daemon.engines.base import EngineOptions, Utterance
from fishs2_daemon.engines.s2cpp.engine import S2CppEngine
from fishs2_daemon.speech import Clip, SamplingOverrides
from fishs2_daemon.text.phrase import Phrase

#: Options of the compiler to a library of them.
Compile = Callable[..., Path]

FRAME = 2048


@dataclass
class StandIn:
    """A runtime folder with the stand-in in it, the files that it "loads", and what was called."""

    folder: Path
    log: Path

    @property
    def settings(self) -> dict[str, str]:
        return {
            "runtime_dir": str(self.folder),
            "model_path": str(self.folder / "tiny.gguf"),
            "tokenizer_path": str(self.folder / "tokenizer.json"),
        }

    @property
    def library(self) -> Path:
        return self.folder / "libs2.so"

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def called(self, name: str) -> list[str]:
        """The calls that begin with that word."""
        return [call for call in self.calls if call.startswith(name)]


@dataclass
class Recording:
    clip: Clip
    pcm: bytes


Install = Callable[..., StandIn]
Record = Callable[..., Recording]


def _hash(data: bytes) -> int:
    value = 2166136261
    for byte in data:
        value = (value ^ byte) * 16777619 & 0xFFFFFFFF
    return value


def sound(text: str, frames: int = 3, reference: bytes = b"") -> bytes:
    """Of a phrase; `reference` is the PCM of the recording, which is filled up to whole frames."""
    seed = _hash(text.encode())
    if reference:
        seed ^= _hash(reference + bytes(-len(reference) % (2 * FRAME)))
    return (seed + 31 * np.arange(frames * FRAME, dtype=np.uint32)).astype(np.uint16).tobytes()


async def phrases(*texts: str) -> AsyncIterator[Phrase]:
    for text in texts:
        yield text if isinstance(text, Phrase) else Phrase(text)


@asynccontextmanager
async def loaded(standin: StandIn, **options: object) -> AsyncIterator[S2CppEngine]:
    engine = S2CppEngine(EngineOptions(**{"backend": "cpu", **standin.settings, **options}))  # type: ignore[arg-type]
    try:
        await engine.load(lambda what, fraction: None)
        yield engine
    finally:
        await engine.close()


async def said(engine: S2CppEngine, *texts: str, clips: tuple[Clip, ...] = (), **sampling: float) -> bytes:
    utterance = Utterance("default", phrases(*texts), clips, SamplingOverrides(**sampling))  # type: ignore[arg-type]
    async with aclosing(engine.speak(utterance)) as blocks:
        return b"".join([block.samples async for block in blocks])
