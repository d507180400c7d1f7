"""What Home Assistant is told when it asks `describe`."""

import locale
from collections.abc import Iterable

from wyoming.event import Event
from wyoming.info import Attribution, Info, TtsProgram, TtsVoice

from fishs2_daemon import __version__
from fishs2_daemon.service import SpeechService
from fishs2_daemon.speech import Voice

#: Part of Home Assistant's unique id of this program: it may never change.
PROGRAM_NAME = "fishs2"

#: Who made the voices of each engine, and what users are told of it.
_MAKERS = {
    "espeak": (
        "Preview voice (espeak-ng)",
        Attribution(name="espeak-ng", url="https://github.com/espeak-ng/espeak-ng"),
    ),
    "s2": (
        "Fish Audio S2 Pro (built with Fish Audio)",
        Attribution(name="Fish Audio", url="https://huggingface.co/fishaudio/s2-pro"),
    ),
    "s2cpp": (
        "Fish Audio S2 Pro by s2.cpp (built with Fish Audio)",
        Attribution(name="Fish Audio", url="https://huggingface.co/fishaudio/s2-pro"),
    ),
    "remote": ("Speech of other servers", Attribution(name="fishs2-daemon", url="")),
}
_NOBODY_YET = ("The engine is loading", Attribution(name="fishs2-daemon", url=""))

#: Always offered, and alone while the engine loads: an `info` without a voice keeps Home Assistant from ever adding us.
_DEFAULT_VOICE = "default"


def info_event(service: SpeechService) -> Event:
    """Built anew for every `describe`, so that new voices appear without a restart. Never waits for the engine."""
    offered = _offered_languages(service.settings.languages)
    own = [voice for voice in service.voices() if voice.id != _DEFAULT_VOICE]
    voices = [voice for voice in own if offered is None or _speaks(voice, offered)]
    default = Voice(_DEFAULT_VOICE, "Default", _default_languages(service, offered))
    engine = service.engine.name if service.engine else ""
    description, maker = _MAKERS.get(engine, _NOBODY_YET)
    program = TtsProgram(
        name=PROGRAM_NAME,
        attribution=maker,
        installed=True,
        description=description,
        version=__version__,
        voices=[_tts_voice(voice, maker, offered) for voice in (default, *voices)],
        supports_synthesize_streaming=True,
    )
    return Info(tts=[program]).event()


def _tts_voice(voice: Voice, maker: Attribution, offered: set[str] | None) -> TtsVoice:
    """In those of its languages that are offered: one voice of S2 Pro would bring all of the model's."""
    languages = [tag for tag in voice.languages if offered is None or _is_of(tag, offered)]
    return TtsVoice(
        name=voice.id,
        attribution=maker,
        installed=True,
        description=voice.description,
        version=None,
        languages=languages or list(voice.languages),
    )


def _offered_languages(configured: Iterable[str]) -> set[str] | None:
    """Lower-case tags, or None for all. Few by default: Home Assistant preselects the alphabetically first one, and
    before 2026.9 any one."""
    tags = {tag.replace("_", "-").lower() for tag in configured}
    if "all" in tags or "*" in tags:
        return None
    if not tags:
        tags = {"en"}
        box = (locale.getlocale()[0] or "").partition("_")[0].lower()
        tags |= {box} if box and box != "c" else set()
    return tags


def _speaks(voice: Voice, offered: set[str]) -> bool:
    return any(tag.lower() in offered for tag in voice.languages)


def _is_of(tag: str, offered: set[str]) -> bool:
    """Whether it is offered itself or as its primary language."""
    return not {tag.lower(), tag.lower().partition("-")[0]}.isdisjoint(offered)


def _default_languages(service: SpeechService, offered: set[str] | None) -> tuple[str, ...]:
    """Languages of the default voice as loaded; until then, what was asked for."""
    name = service.default_voice(service.engine) if service.engine else None
    for voice in service.voices():
        if voice.id == name:
            return voice.languages
    return tuple(sorted(offered or {"en"}))
