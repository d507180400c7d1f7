"""The road from written text to phrases.

text -> TextCleaner -> TurnSplitter -> Replacer -> PhraseSplitter -> phrases
SSML -> parse -> texts that take the same road, and breaks
"""

from collections.abc import Iterator

from fishs2_daemon.text import ssml
from fishs2_daemon.text.clean import TextCleaner
from fishs2_daemon.text.phrase import Phrase
from fishs2_daemon.text.phrases import PhraseSplitter, ends_sentence
from fishs2_daemon.text.plan import DEFAULT_PLAN, TextFormat, TextPlan
from fishs2_daemon.text.replacements import Replacer
from fishs2_daemon.text.turns import Turn, TurnSplitter


class TextReader:
    """`feed` chunks, `pause` when the writer pauses, `finish` at the end; each yields the phrases that are complete.

    Where there is no `pause`, phrases are the same however the text was cut into chunks. A phrase is of one speaker.
    SSML is read when it is complete: `finish` yields all of it, or raises `InvalidRequest`.
    """

    def __init__(self, plan: TextPlan = DEFAULT_PLAN) -> None:
        self._plan = plan
        self._cleaner = TextCleaner() if plan.clean else None
        self._turns = TurnSplitter()
        self._replacer = Replacer(plan.replacements)
        self._splitter = PhraseSplitter(
            sentence_pause_s=plan.sentence_pause_s, paragraph_pause_s=plan.paragraph_pause_s
        )
        self._document: list[str] = []

    def feed(self, chunk: str) -> Iterator[Phrase]:
        if self._plan.text_format is TextFormat.SSML:
            self._document.append(chunk)
        else:
            yield from self._styled(self._read(chunk))

    def pause(self) -> Iterator[Phrase]:
        """A sentence that is complete is spoken now."""
        yield from self._styled(self._pause())

    def flush(self) -> Iterator[Phrase]:
        """All that there is is spoken now, and what follows begins a new phrase. SSML is read when it is complete."""
        if self._plan.text_format is not TextFormat.SSML:
            yield from self._styled(self._read_rest(self._plan.sentence_pause_s))

    def finish(self) -> Iterator[Phrase]:
        if self._plan.text_format is TextFormat.SSML:
            yield from self._styled(self._read_document())
        else:
            yield from self._styled(self._read_rest(0.0))

    def _styled(self, phrases: Iterator[Phrase]) -> Iterator[Phrase]:
        if not self._plan.style:
            return phrases
        return (Phrase(self._plan.style + each, each.pause_s, each.speaker) for each in phrases)

    def _read(self, chunk: str) -> Iterator[Phrase]:
        yield from self._split(self._turns.feed(self._cleaner.feed(chunk) if self._cleaner else chunk))

    def _pause(self) -> Iterator[Phrase]:
        if self._cleaner:
            yield from self._split(self._turns.feed(self._cleaner.pause()))
        if ends_sentence(self._replacer.held):
            yield from self._splitter.feed(self._replacer.finish())
        yield from self._splitter.pause()

    def _read_rest(self, pause_s: float) -> Iterator[Phrase]:
        if self._cleaner:
            yield from self._split(self._turns.feed(self._cleaner.finish()))
        yield from self._split(self._turns.finish())
        yield from self._end_turn(pause_s)

    def _split(self, turns: Iterator[Turn]) -> Iterator[Phrase]:
        for speaker, begins, text in turns:
            if begins:
                yield from self._end_turn(self._plan.sentence_pause_s)
                self._splitter.speaker = speaker
            yield from self._splitter.feed(self._replacer.feed(text))

    def _end_turn(self, pause_s: float) -> Iterator[Phrase]:
        yield from self._splitter.feed(self._replacer.finish())
        yield from self._splitter.finish(pause_s)

    def _read_document(self) -> Iterator[Phrase]:
        """One phrase is kept back, since a break behind it sets its pause. A break before the first one is lost."""
        parts = ssml.parse("".join(self._document))
        self._document.clear()
        kept: Phrase | None = None
        for part in [*parts, ssml.Break(0.0)]:
            for phrase in self._read(part) if isinstance(part, str) else self._read_rest(0.0):
                if kept is not None:
                    yield kept
                kept = phrase
            if isinstance(part, ssml.Break) and kept is not None:
                kept = Phrase(kept, part.pause_s, kept.speaker)
        if kept is not None:
            yield kept
