"""The seam between the worker process and what it runs."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from fishs2_daemon.speech import AS_SET, Clip, EngineInfo, Pcm, Priority, SamplingOverrides
from fishs2_daemon.text.phrase import Phrase

Progress = Callable[[str, float], None]

#: What S2 Pro speaks well, whoever runs it.
S2_LANGUAGES = ("en", "zh", "ja", "ko", "es", "pt", "ar", "ru", "fr", "de", "it", "nl", "pl", "tr", "sv")


@dataclass(frozen=True, slots=True)
class Utterance:
    """One text for the engine: `phrases` arrive one by one, in order, and may arrive while it speaks. Each is followed
    by its pause.

    With `clips` it is spoken like those, whatever `voice` is; an engine that does not clone is never given any.
    Without any phrase the voice is made ready, and nothing is said.
    """

    voice: str
    phrases: AsyncIterator[Phrase]
    clips: tuple[Clip, ...] = ()
    sampling: SamplingOverrides = AS_SET
    priority: Priority = Priority.CONVERSATION


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Settings that engines act on, under the names they have there; an engine takes those that it knows. `instance`
    tells this daemon from all others."""

    model_path: str = ""
    tokenizer_path: str = ""
    backend: str = "auto"
    gpu_device: int = 0
    n_threads: int = 0
    max_new_tokens: int = 1024
    temperature: float = 0.8
    top_p: float = 0.8
    top_k: int = 30
    seed: int = 0
    min_tokens_before_end: int = 0
    rope: str = "bf16"
    slots: int = 0
    context: int = 4096
    voice_cache_mb: int = 512
    n_gpu_layers: int = -1
    runtime_dir: str = ""
    s2_dll_path: str | None = None
    runtime_extra_dll_dirs: Sequence[str] = ()
    remote_urls: Sequence[str] = ()
    remote_model: str = ""
    remote_api_key_file: str | None = None
    remote_slots: int = 8
    instance: str = ""


def pauses(phrase: Phrase, sample_rate: int) -> Iterator[Pcm]:
    """The silence behind a phrase, where there is any."""
    if samples := round(phrase.pause_s * sample_rate):
        yield Pcm(bytes(2 * samples), sample_rate)


class Engine(Protocol):
    """Made with `EngineOptions` and owned by the worker's event loop; blocking work belongs on its own threads.

    `speak` may run up to `EngineInfo.slots` times at once. It yields a phrase's blocks as they are made, the first as
    soon as it exists; closing the generator stops the work within one block. It raises `EngineError` with a text for
    the caller, or `Busy` where others would have to stop first and nothing was spoken yet.
    """

    async def load(self, progress: Progress) -> EngineInfo:
        """Make the engine ready to speak. `progress(what, fraction)` may be called on the loop at any time."""

    def info(self) -> EngineInfo:
        """The engine's voices as they are now; read again when the daemon reloads."""

    def speak(self, utterance: Utterance) -> AsyncGenerator[Pcm, None]: ...

    async def close(self) -> None: ...
