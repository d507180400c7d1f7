"""Every voice that a request may name: the stored ones, and the engine's own."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from fishs2_daemon.errors import InvalidRequest, MissingTranscript, UnknownVoice
from fishs2_daemon.settings import Settings
from fishs2_daemon.speech import AS_SET, Clip, EngineInfo, SamplingOverrides, Voice
from fishs2_daemon.voices.meta import StoredVoice
from fishs2_daemon.voices.store import VoiceStore

_log = logging.getLogger(__name__)

_NAMES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Casting:
    """Who speaks a text: the engine's voice `voice`, or with `clips` the one of those. `stored` is the stored voice
    that was asked for; where it is set and there are no clips, the engine does not clone, and `voice` stands in."""

    voice: str
    stored: str | None = None
    clips: tuple[Clip, ...] = ()
    sampling: SamplingOverrides = AS_SET
    style: str | None = None

    @property
    def name(self) -> str:
        """What the listener was promised."""
        return self.stored or self.voice

    @property
    def is_stand_in(self) -> bool:
        return self.stored is not None and not self.clips


class VoiceCatalogue:
    """Stored voices go before the engine's own of the same name."""

    def __init__(self, settings: Settings, store: VoiceStore) -> None:
        self.store = store
        self._settings = settings
        self._stored: tuple[StoredVoice, ...] = ()
        self._stood_in: set[str] = set()

    async def refresh(self) -> None:
        """Look at the disk again; what is listed otherwise is as of the last time."""
        self._stored = await asyncio.to_thread(self.store.list)

    def voices(self, engine: EngineInfo | None) -> tuple[Voice, ...]:
        """The stored ones first. One that has no language of its own is offered for all that the engine speaks, as is
        any where the engine clones."""
        own = engine.voices if engine else ()
        known = tuple(dict.fromkeys(tag for voice in own for tag in voice.languages))
        stored = [
            Voice(
                voice.id,
                voice.description or voice.title or voice.id,
                tuple(dict.fromkeys((*voice.languages, *(known if engine and engine.clones else ()))))
                or known
                or ("en",),
            )
            for voice in self._stored
        ]
        taken = {voice.id.casefold() for voice in stored}
        return (*stored, *(voice for voice in own if voice.id.casefold() not in taken))

    def default(self, engine: EngineInfo) -> str | None:
        """Id of the voice of requests that name none: the one that is set, else one of the first language that is set,
        else the engine's own. None where the one that is set does not exist."""
        if self._settings.default_voice:
            return _named(self._settings.default_voice, self.voices(engine))
        for language in self._settings.languages[:1]:
            return _speaking(language, engine) or engine.default_voice
        return engine.default_voice

    async def cast(self, asked: str | None, language: str | None, engine: EngineInfo) -> Casting:
        """Who speaks for a request that names a voice, or a language, or neither.

        Raises `UnknownVoice`, `BrokenVoice`, or `MissingTranscript` for a stored voice that cannot be cloned.
        """
        await self.refresh()
        wanted = (asked or "").strip()
        if wanted.lower() not in ("", "default"):
            voices = self.voices(engine)
            if name := _named(wanted, voices):
                return await self._cast(name, engine)
            if self._settings.unknown_voice == "error":
                raise UnknownVoice(f"there is no voice {wanted!r}; voices: {self._some(engine)}", param="voice")
            _log.warning("there is no voice %r; the default speaks (FISHS2_UNKNOWN_VOICE=default)", wanted)
        elif language and not wanted:
            if own := _speaking(language, engine):
                return Casting(own)
            raise UnknownVoice(f"no voice speaks {language!r}; voices: {self._some(engine)}", param="voice")
        if name := self.default(engine):
            return await self._cast(name, engine)
        raise UnknownVoice(
            f"FISHS2_DEFAULT_VOICE: there is no voice {self._settings.default_voice!r}; voices: {self._some(engine)}"
        )

    async def _cast(self, name: str, engine: EngineInfo) -> Casting:
        if all(voice.id != name for voice in self._stored):
            return Casting(name)
        stored = await asyncio.to_thread(self.store.resolve, name)
        if not engine.clones:
            self._tell_stand_in(stored, engine)
            own = next((own for tag in stored.languages if (own := _speaking(tag, engine))), engine.default_voice)
            return Casting(own, stored.id, (), stored.sampling, None)
        return Casting(engine.default_voice, stored.id, (_reference(stored),), stored.sampling, stored.style)

    def _tell_stand_in(self, stored: StoredVoice, engine: EngineInfo) -> None:
        if stored.id not in self._stood_in:
            self._stood_in.add(stored.id)
            _log.warning("%s does not clone voices: it speaks for %r in a voice of its own", engine.name, stored.id)

    def _some(self, engine: EngineInfo) -> str:
        default = self.default(engine)
        names = [voice.id for voice in sorted(self.voices(engine), key=lambda voice: voice.id != default)]
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        return ", ".join(names[:_NAMES_SHOWN]) + more


def _reference(stored: StoredVoice) -> Clip:
    """The first clip: several of one person would be several speakers to the model."""
    if not stored.clips:
        raise InvalidRequest(f"the voice {stored.id!r} has no clips", param="voice")
    clip = stored.clips[0]
    if not clip.transcript or clip.sha256 is None:
        raise MissingTranscript(
            f"the voice {stored.id!r} has no transcript of {clip.filename}, which cloning needs: write what is said in "
            f"it to {clip.path.stem}.txt beside it, or upload it again with prompt_text",
            param="reference_text",
        )
    return Clip(str(clip.path), clip.sha256, clip.transcript)


def _named(wanted: str, voices: Sequence[Voice]) -> str | None:
    exact = {voice.id: voice.id for voice in voices}
    return exact.get(wanted) or {voice.id.casefold(): voice.id for voice in voices}.get(wanted.casefold())


def _speaking(language: str, engine: EngineInfo) -> str | None:
    """The first voice of exactly that language, else of its primary language; the default voice goes first."""
    wanted = language.strip().replace("_", "-").lower()
    voices = sorted(engine.voices, key=lambda voice: voice.id != engine.default_voice)
    for tag in (wanted, wanted.partition("-")[0]):
        for voice in voices:
            if tag in (known.lower() for known in voice.languages):
                return voice.id
    return None
