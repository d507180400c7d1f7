"""What the text road ends in."""


class Phrase(str):
    """A text to speak in one go, and what the one who speaks it may want to know.

    `pause_s` of silence belong behind it. `speaker` is the number of its `<|speaker:N|>` turn, None outside of turns.
    A `str`, so that whoever wants nothing but the words takes it as it is; two phrases of the same words are equal.
    """

    __slots__ = ("pause_s", "speaker")

    pause_s: float
    speaker: int | None

    def __new__(cls, text: str, pause_s: float = 0.0, speaker: int | None = None) -> "Phrase":
        phrase = super().__new__(cls, text)
        phrase.pause_s = pause_s
        phrase.speaker = speaker
        return phrase
