"""The vocabulary that doors, service, worker and engines share."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum, IntEnum

from fishs2_daemon.errors import InvalidRequest


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


#: Least and most, both allowed. A float may be written as an integer.
SAMPLING_RANGES: Mapping[str, tuple[type[int] | type[float], int, int]] = {
    "max_new_tokens": (int, 1, 8192),
    "temperature": (float, 0, 2),
    "top_p": (float, 0, 1),
    "top_k": (int, 0, 500),
    "seed": (int, 0, 2**63 - 1),
    "min_tokens_before_end": (int, 0, 8192),
}


class Priority(IntEnum):
    """Who goes first where there is not room for all."""

    CONVERSATION = 0  # somebody stands there and waits
    READING = 1  # books and other long texts


@dataclass(frozen=True, slots=True)
class SamplingOverrides:
    """How a text shall be drawn; None leaves it to the voice, or to the setting of that name. Raises
    `InvalidRequest`."""

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    min_tokens_before_end: int | None = None

    def __post_init__(self) -> None:
        for name, (kind, least, most) in SAMPLING_RANGES.items():
            value = getattr(self, name)
            if value is None:
                continue
            kinds = (int,) if kind is int else (int, float)
            if type(value) not in kinds or not least <= value <= most:
                what = "an integer" if kind is int else "a number"
                raise InvalidRequest(f"sampling.{name} must be {what} from {least} to {most}", param="sampling")

    def over(self, others: "SamplingOverrides") -> "SamplingOverrides":
        """These, and those of `others` where there are none."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return replace(others, **given)


AS_SET = SamplingOverrides()


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording to clone, and what is said in it. The file at `path` is meant as long as it has that digest."""

    path: str
    sha256: str
    transcript: str


class Flush(str):
    """A chunk of a text that is still arriving, behind which all that came is spoken: no phrase goes on there."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    """What a door asks the service to speak.

    `text` is the whole text, or its chunks as they arrive; chunk borders mean nothing, but for that of a `Flush`.
    `voice` is a voice id; None, or "default", is the default voice, or the first one that speaks `language` where that
    is given. With `references`, the recordings of speaker 0, 1, ..., no voice is looked up; `voices` names one for each
    `<|speaker:N|>` of the text. `style` is said of every phrase, as the tag `[whisper]`. `ssml` says that the text is
    SSML; `clean`, whether Markdown and the like are read as a person would (None: as set).
    """

    text: str | AsyncIterator[str]
    voice: str | None = None
    language: str | None = None
    sampling: SamplingOverrides = AS_SET
    priority: Priority = Priority.CONVERSATION
    references: tuple[Clip, ...] = ()
    voices: Mapping[int, str] = field(default_factory=dict)
    style: str | None = None
    ssml: bool = False
    clean: bool | None = None


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a loaded engine says of itself: its name, how many texts it speaks at a time, its voices, whether it speaks
    with those of recordings, on what it computes, and of how many kernels a frame is there at the most, all started at
    once; 0 where it has no frames."""

    name: str
    sample_rate: int
    slots: int
    default_voice: str
    voices: tuple[Voice, ...]
    clones: bool = False
    device: str = ""
    frame_kernels: int = 0


class EngineState(Enum):
    """Where the engine's worker stands, as `/health`, `/ready` and systemd's status report it."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    UNLOADED = "unloaded"
    STOPPED = "stopped"
