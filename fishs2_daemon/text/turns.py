"""Speaker turns of a text that is still arriving: `<|speaker:0|>Hello. <|speaker:1|>Hi!`"""

import re
from collections.abc import Iterator

#: Numbers of up to this many digits name a speaker.
SPEAKER_DIGITS = 3

_NAME = rf"speaker:([0-9]{{1,{SPEAKER_DIGITS}}})"
#: What stands between `<|` and `|>` of a speaker tag.
SPEAKER_NAME = re.compile(_NAME)
_TAG = re.compile(rf"<\|{_NAME}\|>")
_BEGUN = re.compile(
    rf"<(?:\|(?:s(?:p(?:e(?:a(?:k(?:e(?:r(?::(?:[0-9](?:[0-9]{{0,{SPEAKER_DIGITS - 1}}}\|?)?)?)?)?)?)?)?)?)?)?)?\Z"
)
_LONGEST = len("<|speaker:|>") + SPEAKER_DIGITS

Turn = tuple[int | None, bool, str]


class TurnSplitter:
    """`feed` chunks, `finish` at the end; each yields `(speaker, begins, text)`: a part of a turn's text, and whether
    a tag stands before it.

    The speaker is None before the first tag. Anything else in `<| |>` is text. At most one tag's length is held back.
    """

    def __init__(self) -> None:
        self._held = ""
        self._speaker: int | None = None

    def feed(self, chunk: str) -> Iterator[Turn]:
        text, at, begins = self._held + chunk, 0, False
        for tag in _TAG.finditer(text):
            if begins or tag.start() > at:
                yield self._speaker, begins, text[at : tag.start()]
            self._speaker, at, begins = int(tag[1]), tag.end(), True
        begun = _BEGUN.search(text, max(at, len(text) - _LONGEST))
        end = begun.start() if begun else len(text)
        if begins or end > at:
            yield self._speaker, begins, text[at:end]
        self._held = text[end:]

    def finish(self) -> Iterator[Turn]:
        rest, self._held = self._held, ""
        if rest:
            yield self._speaker, False, rest
        self._speaker = None
