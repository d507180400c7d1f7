"""Cuts a text, as it arrives, into phrases for the engine.

Phrases are sentences, and beyond that: the first one is short, so that speech starts early; none is longer than a
budget; a finished sentence is not held back while the writer pauses; nothing that cannot be spoken.
"""

import re
import unicodedata
from collections.abc import Iterator

from fishs2_daemon.text.budget import chars_within
from fishs2_daemon.text.phrase import Phrase
from fishs2_daemon.text.sentences import LINE, PARAGRAPH, End, in_tag, next_end
from fishs2_daemon.text.unspoken import UNSPOKEN

#: The first phrase may end at a clause once it has this many tokens, and ends at the latest at the longest.
FIRST_SHORTEST_TOKENS = 6
FIRST_LONGEST_TOKENS = 25

#: About 20 s of speech: what a listener would wait for, at most, behind somebody else's phrase.
LONGEST_TOKENS = 75

#: Each bite's end is looked at for what is ripe; small ones keep what waits, and is looked at, short.
_BITE = 256

#: A full stop counts behind five letters or more: behind fewer it may be an abbreviation's (Dr., e.g., Prof.).
_CLAUSE_END = re.compile(
    r"[,;:–—](?=\s)|[,;:]['\"”’»)\]](?=\s)|[、，；：،؛]"
    r"|(?:(?<=\w{5})\.|(?<![.!?…。！？])[!?…。！？])[.!?…。！？]*+['\"”’»)\]]*+(?=\s)"
)
_SENTENCE_END = re.compile(r"[.!?…。！？؟।॥]['\"”’»)\]」』]*\s*$")
_SPACE = re.compile(r"\s")
_WIDE_SPACE = re.compile(r"\s{2,}|[^\S ]")
_LINE_END = re.compile(rf"\r\n|[\n\r{LINE}]")

#: Signs that are read by name although they are neither letter nor number.
_SPOKEN_SIGNS = frozenset("%&@+=°")
_ALPHANUMERIC = re.compile(r"[^\W_]")


def is_speakable(text: str) -> bool:
    """Whether there is anything to say: a letter, a number, a currency or one of a few signs; emoji are not."""
    return bool(_ALPHANUMERIC.search(text)) or any(
        char in _SPOKEN_SIGNS or unicodedata.category(char) == "Sc" for char in text
    )


def ends_sentence(text: str) -> bool:
    """Whether the last sentence of `text` is complete, as far as its marks tell."""
    return bool(_SENTENCE_END.search(text))


class PhraseSplitter:
    """`feed` chunks, `pause` when the writer pauses, `finish` at the end; each returns the phrases that are complete.

    Phrases are the same however the text was cut into chunks, where there is no `pause`. They have no line breaks or
    double spaces, at most `LONGEST_TOKENS`, and are all speakable. `sentence_pause_s` belongs behind a sentence and a
    line that stands alone (U+2028), `paragraph_pause_s` behind a paragraph (a blank line, U+2029), nothing behind the
    last phrase. `speaker` is noted in each phrase.
    """

    def __init__(self, *, sentence_pause_s: float = 0.0, paragraph_pause_s: float = 0.0) -> None:
        self.speaker: int | None = None
        self._sentence_pause_s = sentence_pause_s
        self._paragraph_pause_s = max(sentence_pause_s, paragraph_pause_s)
        self._pending = ""
        self._searched = 0  # no sentence ends before
        self._started = False

    def feed(self, chunk: str) -> Iterator[Phrase]:
        for start in range(0, len(chunk), _BITE):
            self._take_in(chunk[start : start + _BITE])
            yield from self._cut(final=False)

    def pause(self) -> Iterator[Phrase]:
        """A sentence that is complete is spoken now, without waiting for the beginning of the next one."""
        if ends_sentence(self._pending):
            yield from self.finish(self._sentence_pause_s)

    def finish(self, pause_s: float = 0.0) -> Iterator[Phrase]:
        """The rest, with `pause_s` behind the last phrase."""
        yield from self._cut(final=True)
        yield from self._take(len(self._pending), pause_s)

    def _take_in(self, bite: str) -> None:
        """Every run of white space becomes one character, which says whether it parts lines or paragraphs."""
        bite = UNSPOKEN.sub(" ", bite)
        if self._pending and self._pending[-1].isspace():
            bite, self._pending = self._pending[-1] + bite, self._pending[:-1]
            self._searched = min(self._searched, len(self._pending))
        bite = _WIDE_SPACE.sub(_one_space, bite)
        self._pending = self._pending + bite if self._pending else bite.lstrip()

    def _cut(self, *, final: bool) -> Iterator[Phrase]:
        while self._pending:
            if self._started and len(self._pending) > LONGEST_TOKENS:
                # No character is more than a token, so that this much fits in any case.
                end = next_end(self._pending[:LONGEST_TOKENS], self._searched, final=False)
                if end and not end.open:
                    yield from self._take(end.at, self._pause_behind(end))
                    continue
            fits = chars_within(self._pending, LONGEST_TOKENS if self._started else FIRST_LONGEST_TOKENS)
            is_full = fits < len(self._pending)
            text = self._pending[: fits + 1] if is_full else self._pending
            end = next_end(text, self._searched, final=final and not is_full)
            clause = None if self._started else _first_clause(text, final=final and not is_full)
            if clause and (end is None or clause < end.at):
                yield from self._take(clause, self._sentence_pause_s if ends_sentence(text[:clause]) else 0.0)
            elif end and not end.open:
                yield from self._take(end.at, self._pause_behind(end))
            elif is_full:
                yield from self._take(_cut_point(text, fits), 0.0)
            else:
                self._searched = end.at if end else len(text)
                return

    def _pause_behind(self, end: End) -> float:
        return self._paragraph_pause_s if end.breaks == PARAGRAPH else self._sentence_pause_s

    def _take(self, end: int, pause_s: float) -> Iterator[Phrase]:
        text = " ".join(self._pending[:end].split())
        self._pending = self._pending[end:].lstrip()
        self._searched = 0
        if is_speakable(text):
            self._started = True
            yield Phrase(text, pause_s, self.speaker)


def _one_space(run: re.Match[str]) -> str:
    lines = len(_LINE_END.findall(run[0]))
    if lines > 1 or PARAGRAPH in run[0]:
        return PARAGRAPH
    if LINE in run[0]:
        return LINE
    if not lines:
        return " "
    return "\r" if run[0][-1] == "\r" else "\n"  # the other half of \r\n may follow


def _first_clause(text: str, *, final: bool) -> int:
    """Where the first clause ends, if it is long enough and something of the sentence follows; else 0."""
    shortest = chars_within(text, FIRST_SHORTEST_TOKENS)
    for clause in _CLAUSE_END.finditer(text, shortest):
        at = clause.end()
        if at < len(text) and text[at] in (LINE, PARAGRAPH):
            return 0
        if not in_tag(text, clause.start()):
            known = at < len(text) and (not text[at].isspace() or at + 1 < len(text) or final)
            return at if known else 0
    return 0


def _cut_point(text: str, longest: int) -> int:
    """Where to cut a text that is longer than `longest`: after a clause, else at a space, else anywhere between
    two letters; not within a tag if it can be helped."""
    clauses = [each.end() for each in _CLAUSE_END.finditer(text, longest // 4) if each.end() <= longest]
    spaces = [each.end() for each in _SPACE.finditer(text, longest // 4) if each.end() <= longest]
    for cuts in (clauses, spaces):
        for at in reversed(cuts):
            if not in_tag(text, at - 1):
                return at
    if spaces:
        return spaces[-1]
    at = longest
    while at > longest // 2 and unicodedata.category(text[at])[0] == "M":
        at -= 1  # a letter keeps its accents
    return at
