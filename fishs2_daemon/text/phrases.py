"""Cuts a text, as it arrives, into phrases for the engine.

Sentences come from `sentence-stream`. On top of it: a short first phrase, so that speech starts early; no phrase
longer than a budget; a finished sentence is not held back while the writer pauses; nothing that cannot be spoken.
"""

import re
import unicodedata
from collections.abc import Iterator

from sentence_stream import SentenceBoundaryDetector

#: The first phrase may end at a clause once it has this many characters, and ends at the latest at the longest.
FIRST_SHORTEST = 24
FIRST_LONGEST = 100

#: About 20 s of speech: what a listener would wait for, at most, behind somebody else's phrase.
LONGEST = 300

#: The detector searches its whole buffer for each chunk; small bites keep that linear for long texts.
_BITE = 256

#: A full stop counts behind five letters or more: behind fewer it may be an abbreviation's (Dr., e.g., Prof.).
_CLAUSE_END = re.compile(
    r"[,;:–—](?=\s)|[,;:]['\"”’»)\]](?=\s)|[、，；：،؛]|(?:(?<=\w{5})\.|[!?…。！？])[.!?…。！？]*['\"”’»)\]]*(?=\s)"
)
_SENTENCE_END = re.compile(r"[.!?…。！？؟।॥]['\"”’»)\]」』]*\s*$")
#: Markdown's stars around words and in front of list items.
_STARS = re.compile(r"^\s*\*+|(?<!\w)\*+(?=\S)|(?<=\S)\*+(?!\w)", re.MULTILINE)
_SPACE = re.compile(r"\s")

#: Control characters (a NUL would end the text for a C library) and halves of surrogate pairs mean nothing aloud.
_UNSPOKEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufeff\ufffe\uffff]")

#: Signs that are read by name although they are neither letter nor number.
_SPOKEN_SIGNS = frozenset("%&@+=°")


def is_speakable(text: str) -> bool:
    """Whether there is anything to say: a letter, a number, a currency or one of a few signs; emoji are not."""
    return any(unicodedata.category(char)[0] in "LN" or unicodedata.category(char) == "Sc" for char in text) or any(
        char in _SPOKEN_SIGNS for char in text
    )


class PhraseSplitter:
    """`feed` chunks, `pause` when the writer pauses, `finish` at the end; each returns the phrases that are complete.

    Phrases have no line breaks or double spaces, at most `LONGEST` characters, and are all speakable.
    """

    def __init__(self) -> None:
        self._detector = SentenceBoundaryDetector()
        self._started = False

    def feed(self, chunk: str) -> Iterator[str]:
        for start in range(0, len(chunk), _BITE):
            bite = _UNSPOKEN.sub(" ", chunk[start : start + _BITE])
            for sentence in self._detector.add_chunk(bite):
                yield from self._cut(sentence)
            yield from self._cut_early()

    def pause(self) -> Iterator[str]:
        """A sentence that is complete is spoken now; the detector would wait for the first letter of the next one."""
        if _SENTENCE_END.search(self._pending):
            yield from self.finish()

    def finish(self) -> Iterator[str]:
        yield from self._cut(self._detector.finish())

    @property
    def _pending(self) -> str:
        return self._detector.current_sentence + self._detector.remaining_text

    def _cut_early(self) -> Iterator[str]:
        """Take what is ripe out of an unfinished sentence: its first clause, or as much as the budget holds."""
        while at := self._ripe(pending := self._pending):
            self._detector = SentenceBoundaryDetector()
            yield from self._cut(pending[:at])
            for sentence in self._detector.add_chunk(pending[at:]):
                yield from self._cut(sentence)

    def _ripe(self, pending: str) -> int:
        longest = LONGEST if self._started else FIRST_LONGEST
        if len(pending) > longest:
            return _cut_point(pending, longest)
        clause = None if self._started else _CLAUSE_END.search(pending, FIRST_SHORTEST)
        return clause.end() if clause else 0

    def _cut(self, sentence: str) -> Iterator[str]:
        rest = " ".join(_STARS.sub("", sentence).split())
        while rest:
            longest = LONGEST if self._started else FIRST_LONGEST
            at = len(rest) if len(rest) <= longest else _cut_point(rest, longest)
            phrase, rest = rest[:at].strip(), rest[at:].strip()
            if is_speakable(phrase):
                self._started = True
                yield phrase


def _cut_point(text: str, longest: int) -> int:
    """Where to cut a text that is longer than `longest`: after a clause, else at a space, else anywhere between
    two letters."""
    window = text[: longest + 1]
    clauses = [match.end() for match in _CLAUSE_END.finditer(window, longest // 4) if match.end() <= longest]
    if clauses:
        return clauses[-1]
    spaces = [match.end() for match in _SPACE.finditer(window, longest // 4) if match.end() <= longest]
    if spaces:
        return spaces[-1]
    at = longest
    while at > longest // 2 and unicodedata.category(text[at])[0] == "M":
        at -= 1  # a letter keeps its accents
    return at
