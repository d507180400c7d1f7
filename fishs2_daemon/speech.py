"""The vocabulary that doors, service, worker and engines share."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Pcm:
    """One block of signed 16-bit little-endian mono samples."""

    samples: bytes
    sample_rate: int

    @property
    def duration_s(self) -> float:
        return len(self.samples) / (2 * self.sample_rate)


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice as listed to clients.

    `id` is what a request names. `languages` are BCP 47 tags, the narrowest first.
    """

    id: str
    description: str
    languages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    """What a door asks the service to speak.

    `text` is the whole text, or its chunks as they arrive; chunk borders mean nothing. `voice` is a voice id; None, or
    "default", is the default voice, or the first one that speaks `language` where that is given.
    """

    text: str | AsyncIterator[str]
    voice: str | None = None
    language: str | None = None


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a loaded engine says of itself: its name, how many texts it speaks at a time, and its voices."""

    name: str
    sample_rate: int
    slots: int
    default_voice: str
    voices: tuple[Voice, ...]


class EngineState(Enum):
    """Where the engine's worker stands, as `/health`, `/ready` and systemd's status report it."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"
