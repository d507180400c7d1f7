"""Every voice that a request may name: the stored ones, and the engine's own."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fishs2_daemon.errors import InvalidRequest, MissingTranscript, UnknownVoice
from fishs2_daemon.settings import Settings
from fishs2_daemon.speech import AS_SET, Clip, EngineInfo, SamplingOverrides, SpeechRequest, Voice
from fishs2_daemon.voices.meta import StoredVoice
from fishs2_daemon.voices.store import VoiceStore

_log = logging.getLogger(__name__)

_NAMES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Casting:
    """Who speaks a text, on which engine: its own voice `voice`, or with `clips` those of speaker 0, 1, ... `name` is
    what the listener was promised. `is_stand_in`: that was a recording, and the engine does not clone."""

    engine: str
    voice: str
    name: str
    clips: tuple[Clip, ...] = ()
    sampling: SamplingOverrides = AS_SET
    style: str | None = None
    is_stand_in: bool = False


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
                _label(voice),
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

    async def cast(self, request: SpeechRequest, engine: EngineInfo) -> Casting:
        """Who speaks for a request that names recordings, a voice for each speaker, a voice, a language, or nothing.

        Raises `UnknownVoice`, `BrokenVoice`, or `MissingTranscript` for a stored voice that cannot be cloned.
        """
        await self.refresh()
        return await self._cast_known(request, engine)

    async def _cast_known(self, request: SpeechRequest, engine: EngineInfo) -> Casting:
        """As `cast`, of the voices that are known."""
        if request.references:
            return self._of_recordings(request.references, "a recording", engine)
        if request.voices:
            return await self._of_speakers(request.voices, engine)
        wanted = (request.voice or "").strip()
        if wanted.lower() not in ("", "default"):
            if name := _named(wanted, self.voices(engine)):
                return await self._cast(name, engine)
            if self._settings.unknown_voice == "error":
                raise UnknownVoice(f"there is no voice {wanted!r}; voices: {self._some(engine)}", param="voice")
            _log.warning("there is no voice %r; the default speaks (FISHS2_UNKNOWN_VOICE=default)", wanted)
        elif request.language and not wanted:
            if own := _speaking(request.language, engine):
                return Casting(engine.name, own, own)
            raise UnknownVoice(f"no voice speaks {request.language!r}; voices: {self._some(engine)}", param="voice")
        if name := self.default(engine):
            return await self._cast(name, engine)
        raise UnknownVoice(
            f"FISHS2_DEFAULT_VOICE: there is no voice {self._settings.default_voice!r}; voices: {self._some(engine)}"
        )

    async def _of_speakers(self, voices: Mapping[int, str], engine: EngineInfo) -> Casting:
        if sorted(voices) != list(range(len(voices))):
            raise InvalidRequest("voices: allowed: a voice for each of the speakers 0, 1, 2, ...", param="voices")
        castings = [
            await self._cast_known(SpeechRequest("", voice=voices[speaker]), engine) for speaker in range(len(voices))
        ]
        if engine.clones and not all(casting.clips for casting in castings):
            own = next(casting.name for casting in castings if not casting.clips)
            raise InvalidRequest(f"voices: {own!r} is no stored voice; allowed: stored voices", param="voices")
        clips = tuple(clip for casting in castings for clip in casting.clips)
        name = ", ".join(casting.name for casting in castings)
        first = castings[0]
        return replace(first, name=name, clips=clips, is_stand_in=any(each.is_stand_in for each in castings))

    async def _cast(self, name: str, engine: EngineInfo) -> Casting:
        if all(voice.id != name for voice in self._stored):
            return Casting(engine.name, name, name)
        stored = await asyncio.to_thread(self.store.resolve, name)
        if not engine.clones:
            self._tell_stand_in(stored.id, engine)
            own = next((own for tag in stored.languages if (own := _speaking(tag, engine))), engine.default_voice)
            return Casting(engine.name, own, stored.id, (), stored.sampling, None, is_stand_in=True)
        clips = (_reference(stored),)
        return Casting(engine.name, engine.default_voice, stored.id, clips, stored.sampling, stored.style)

    def _of_recordings(self, clips: tuple[Clip, ...], name: str, engine: EngineInfo) -> Casting:
        voice = self.default(engine) or engine.default_voice
        if engine.clones:
            return Casting(engine.name, engine.default_voice, name, clips)
        own = voice if any(each.id == voice for each in engine.voices) else engine.default_voice
        self._tell_stand_in(name, engine)
        return Casting(engine.name, own, name, is_stand_in=True)

    def _tell_stand_in(self, name: str, engine: EngineInfo) -> None:
        if name not in self._stood_in:
            self._stood_in.add(name)
            _log.warning("%s does not clone voices: it speaks for %r in a voice of its own", engine.name, name)

    def _some(self, engine: EngineInfo) -> str:
        default = self.default(engine)
        names = [voice.id for voice in sorted(self.voices(engine), key=lambda voice: voice.id != default)]
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        return ", ".join(names[:_NAMES_SHOWN]) + more


def _label(stored: StoredVoice) -> str:
    """What people choose it by, in a list that has little room: its title, which is the id where none was given."""
    is_named = stored.title.casefold() != stored.id.casefold()
    return (stored.title if is_named else "") or stored.description or stored.title or stored.id


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
