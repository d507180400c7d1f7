"""Who speaks a text, or one of the turns in it."""

from fishs2_daemon.engines.s2cpp.pipeline import Reference
from fishs2_daemon.engines.s2cpp.references import References
from fishs2_daemon.engines.s2cpp.samples import SAMPLE_BYTES, SAMPLE_RATE
from fishs2_daemon.speech import Clip

#: So much of a drawn voice is enough to go on in it.
_ENOUGH_BYTES = 3 * SAMPLE_BYTES * SAMPLE_RATE

#: A phrase that takes longer did not end by itself: nothing to go on with.
_MOST_BYTES = 30 * SAMPLE_BYTES * SAMPLE_RATE


class TextVoice:
    """The speaker of `clip`. Without one the model draws somebody for each call, so that each phrase is cloned from
    those before it: a text is read by one person. `reference` and `release` belong on libs2's thread."""

    def __init__(self, references: References, clip: Clip | None) -> None:
        self._references = references
        self._clip = clip
        self._texts: list[str] = []
        self._sound = bytearray()
        self._phrase = bytearray()
        self._drawn: Reference | None = None
        self._drawn_bytes = 0

    def reference(self) -> Reference | None:
        """What the next phrase is cloned from; None leaves the voice to the model. Raises `EngineError`."""
        if self._clip:
            return self._references.of_clip(self._clip)
        if self._drawn_bytes < len(self._sound):
            self.release()
            self._drawn = self._references.of_speech(bytes(self._sound), " ".join(self._texts))
            self._drawn_bytes = len(self._sound)
        return self._drawn

    def hear(self, samples: bytes) -> None:
        """Some of a phrase."""
        if self._goes_on and len(self._phrase) <= _MOST_BYTES:
            self._phrase += samples

    def said(self, phrase: str) -> None:
        """All of it was heard."""
        if self._goes_on and len(self._phrase) <= _MOST_BYTES:
            self._texts.append(phrase)
            self._sound += self._phrase
        self._phrase.clear()

    def release(self) -> None:
        """May be called twice."""
        if self._drawn:
            self._references.release(self._drawn)
            self._drawn = None

    @property
    def _goes_on(self) -> bool:
        """Whether more of the voice is of use."""
        return self._clip is None and self._drawn_bytes < _ENOUGH_BYTES


class Cast:
    """The voices of one text. The clip is that of speaker 0, who also says what is nobody's turn; the others are drawn.
    `release` belongs on libs2's thread."""

    def __init__(self, references: References, clip: Clip | None) -> None:
        self._references = references
        self._clip = clip
        self._voices: dict[int, TextVoice] = {}

    def voice(self, speaker: int | None) -> TextVoice:
        number = speaker or 0
        if number not in self._voices:
            self._voices[number] = TextVoice(self._references, None if number else self._clip)
        return self._voices[number]

    def release(self) -> None:
        """May be called twice."""
        for voice in self._voices.values():
            voice.release()
