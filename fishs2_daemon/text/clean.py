"""Makes written text, as it arrives, into text that can be read aloud."""

import re

from fishs2_daemon.text import markup
from fishs2_daemon.text.blocks import BlockKind, block_at
from fishs2_daemon.text.gaps import Gap, GappedText
from fishs2_daemon.text.inline import (
    BADGE_MARK,
    BEHIND,
    CODE_MARK,
    LONGEST_RUN,
    LONGEST_TAIL,
    MARK,
    TAIL,
    Reading,
    kept,
    read_mark,
    waiting,
)
from fishs2_daemon.text.links import target_end
from fishs2_daemon.text.turns import SPEAKER_NAME

#: Code, comments and the like are left out for at most this many characters: an opening without an end was a slip.
LONGEST_HIDDEN = 20_000

#: Characters read at a time; what is at hand is never much longer.
_BITE = 4096
#: The longest end of something hidden (the end of a code block with its indentation).
_LONGEST_END = 64

_INDENT = re.compile(r"[ \t\u00a0\u3000>]+")
_TICKS = re.compile("`+")
_PIPES = re.compile(r"\|+")
_OPENINGS = ("<|", "<!--", "<http://", "<https://")
_LONGEST_OPENING = len("<https://")
_COMMENT_END = re.compile("-->")
_GAPS = {markup.LINE: Gap.LINE, markup.PARAGRAPH: Gap.PARAGRAPH, markup.CELL: Gap.CELL}
_LINE_ENDS = {"\n": Gap.NEWLINE, "\r": Gap.NEWLINE, "\u2028": Gap.LINE, "\u2029": Gap.PARAGRAPH}
#: Kinds of lines that stand alone, and what parts them from others.
_AROUND = {
    BlockKind.HEADING: Gap.PARAGRAPH, BlockKind.ITEM: Gap.LINE, BlockKind.NUMBERED: Gap.LINE, BlockKind.ROW: Gap.LINE
}  # fmt: skip


class TextCleaner:
    """`feed` chunks, `finish` at the end; the joined answers are the same however the text was cut into chunks.

    Markdown, HTML, emoji, control tokens and invisible characters are read as a person would read them aloud, or left
    out: of a link its text, of an address its host, of a code block nothing. S2's `[tags]` and `<|speaker:N|>` stay.
    Paragraphs are parted by a blank line, lines that stand alone (headings, list items, table rows) by U+2028. Held
    back is only what may still become one of these, at most `LONGEST_URL` and a few hundred characters.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._text = ""
        self._at = 0
        self._out = GappedText()
        self._in_line = False
        self._kind = BlockKind.PLAIN
        self._kind_before = BlockKind.PLAIN
        self._indented = False
        self._code = 0  # length of the run of backticks that opened the code in which the text stands
        self._badges = 0  # links around images, of which the target is still to come
        self._end: re.Pattern[str] | None = None  # what ends the hidden text
        self._hidden = 0

    def feed(self, chunk: str) -> str:
        for start in range(0, len(chunk), _BITE):
            self._text += chunk[start : start + _BITE]
            self._read(final=False)
        return self._out.take()

    def pause(self) -> str:
        """The writer pauses: a `!` at the end is no image's, but a sentence's. Nothing else is given up."""
        if self._in_line and self._text[self._at :] == "!":
            self._put("!")
            self._at += 1
        return self._out.take()

    def finish(self) -> str:
        """The rest of the text; the next `feed` begins a new one."""
        self._read(final=True)
        rest = self._out.take()
        self._begin()
        return rest

    def _read(self, *, final: bool) -> None:
        goes_on = True
        while goes_on and self._at < len(self._text):
            if self._end:
                goes_on = self._skip(self._end, final)
            elif self._in_line:
                goes_on = self._read_line(final)
            else:
                goes_on = self._begin_line(final)
        behind = max(self._at - BEHIND, 0)
        self._text, self._at = self._text[behind:], self._at - behind

    # Hidden text

    def _hide(self, until: re.Pattern[str]) -> None:
        self._end, self._hidden = until, 0

    def _skip(self, end: re.Pattern[str], final: bool) -> bool:
        stop = self._at + LONGEST_HIDDEN - self._hidden
        found = end.search(self._text, self._at)
        if found and found.end() <= stop and (final or found.end() < len(self._text)):
            self._at = found.end()
        elif len(self._text) > stop or final:
            self._at = min(stop, len(self._text))
        else:
            skipped = max(len(self._text) - _LONGEST_END - self._at, 0)
            self._at += skipped
            self._hidden += skipped
            return False
        self._end = None
        self._text, self._at = self._text[self._at :], 0  # marks are not read by what was hidden before them
        return True

    # The beginning of a line

    def _begin_line(self, final: bool) -> bool:
        if indent := _INDENT.match(self._text, self._at):
            self._at, self._indented = indent.end(), True
        if self._at == len(self._text):
            return False
        if self._text[self._at] in _LINE_ENDS:
            if self._text[self._at] != markup.LINE:
                self._out.part(Gap.PARAGRAPH)
            return self._end_line(final)
        block = block_at(self._text, self._at, final=final, in_item=self._kind is BlockKind.ITEM)
        if block is None:
            return False
        self._at = block.end
        match block.kind:
            case BlockKind.RULE:
                self._enter(BlockKind.ROW if "|" in block.mark else BlockKind.HEADING)  # for its line end
            case BlockKind.FENCE:
                self._out.part(Gap.PARAGRAPH)
                self._kind_before = BlockKind.PLAIN
                self._hide(_fence_end(block.mark))
            case BlockKind.ITEM:
                self._kind = BlockKind.ITEM  # and there may be more to it: a check box, a heading
            case BlockKind.NUMBERED if not self._begins_list(block.mark):
                self._enter(BlockKind.PLAIN)
            case _:
                self._enter(block.kind)
        return True

    def _enter(self, kind: BlockKind) -> None:
        """A line begins, behind its bullet if it has one."""
        if self._kind is BlockKind.ITEM and kind is not BlockKind.ROW:
            kind = BlockKind.ITEM
        before = self._kind_before
        if kind is not BlockKind.PLAIN:
            self._out.part(_AROUND[kind])
        if not (before in (BlockKind.ITEM, BlockKind.NUMBERED) and kind is BlockKind.PLAIN and self._indented):
            self._out.part(_AROUND.get(before, Gap.NONE))
        self._kind, self._in_line = kind, True

    def _begins_list(self, number: str) -> bool:
        """A number at the beginning of a line may be a sentence's: "in the year / 84. Then ..."."""
        after_item = self._kind_before in (BlockKind.ITEM, BlockKind.NUMBERED)
        return number == "1" or after_item or self._out.gap in (Gap.NONE, Gap.PARAGRAPH)

    def _end_line(self, final: bool) -> bool:
        """Over the line end at hand."""
        text, at = self._text, self._at
        if text[at] == "\r":
            if at + 1 == len(text) and not final:
                return False
            at += text.startswith("\n", at + 1)
        self._out.part(_LINE_ENDS[text[self._at]])
        self._at = at + 1
        if self._in_line:
            self._kind_before = self._kind
        self._in_line = self._indented = False
        self._kind = BlockKind.PLAIN
        self._code = self._badges = 0
        return True

    # Within a line

    def _read_line(self, final: bool) -> bool:
        text, at = self._text, self._at
        plain = at  # from here on, text is copied as it stands
        while found := self._mark().search(text, at):
            where = found.start()
            if text[where] in _LINE_ENDS:
                self._put(text[plain:where])
                self._at = where
                return self._end_line(final)
            start, at, read = self._reading(text, where, final)
            if at == start:
                continue
            start = max(start, plain)
            self._put(text[plain:start])
            if at < 0:
                self._at = start
                return False
            if text[where] in "[!" and isinstance(read, str):
                # The text of a link may hold more marks: it is read in the link's place.
                text = self._text = text[:start] + read + text[at:]
                at = start
            elif isinstance(read, Gap) or read in _GAPS:
                self._out.part(read if isinstance(read, Gap) else _GAPS[read])
            else:
                self._put(read)
            plain = at
            if self._end:
                self._at = at
                return True
        tail = None if final or self._code else TAIL.search(text, max(plain, len(text) - LONGEST_TAIL))
        self._at = tail.start() if tail else len(text)
        self._put(text[plain : self._at])
        return False

    def _mark(self) -> re.Pattern[str]:
        if self._code:
            return CODE_MARK
        return BADGE_MARK if self._badges else MARK

    def _put(self, text: str) -> None:
        self._out.put(text, trim=self._kind is BlockKind.ROW)

    def _reading(self, text: str, at: int, final: bool) -> Reading:
        match text[at]:
            case "`":
                return self._read_ticks(text, at, final)
            case "|":
                pipes = _PIPES.match(text, at)
                end = pipes.end() if pipes else at + 1
                return (at, end, Gap.CELL) if self._kind is BlockKind.ROW else kept(end)
            case "]":
                return self._read_badge_end(text, at, final)
            case "[" if text.startswith("![", at + 1):
                self._badges += 1
                return at, at + 1, Gap.DROPPED
            case "<":
                return self._read_angle(text, at, final)
        return read_mark(text, at, final)

    def _read_ticks(self, text: str, at: int, final: bool) -> Reading:
        """Backticks are dropped, and what stands between two runs of the same length is not looked into."""
        ticks = _TICKS.match(text, at)
        end = ticks.end() if ticks else at + 1
        if end == len(text) and not final:
            return (at, end - LONGEST_RUN, "") if end - at > LONGEST_RUN else waiting(at)
        length = min(end - at, LONGEST_RUN)
        if self._code in (0, length):
            self._code = 0 if self._code else length
        return at, end, ""

    def _read_badge_end(self, text: str, at: int, final: bool) -> Reading:
        """`](target)` of a link around an image."""
        if at + 1 == len(text):
            return kept(at + 1) if final else waiting(at)
        end = target_end(text, at + 1, final=final)
        if end is None:
            return waiting(at)
        self._badges -= 1
        return (at, end, Gap.DROPPED) if end > at + 1 else kept(at + 1)

    def _read_angle(self, text: str, at: int, final: bool) -> Reading:
        following = text[at + 1 : at + 2]
        if not following:
            return kept(at + 1) if final else waiting(at)
        if following == "<":
            return read_mark(text, at, final)
        begun = text[at : at + _LONGEST_OPENING].lower() if following in "|!hH" else ""
        if begun and not final and any(len(begun) < len(each) and each.startswith(begun) for each in _OPENINGS):
            return waiting(at)
        if begun.startswith("<|"):
            token = markup.control_token_at(text, at, final=final)
            if token is None:
                return waiting(at)
            name, end = token
            return (
                kept(end if end > at else at + 1)
                if end == at or SPEAKER_NAME.fullmatch(name)
                else (at, end, Gap.DROPPED)
            )
        if begun.startswith("<!--"):
            self._hide(_COMMENT_END)
            return at, at + 4, Gap.DROPPED
        if begun.startswith(("<http://", "<https://")):
            return at, at + 1, ""
        tag = markup.tag_at(text, at, final=final)
        if tag is None:
            return waiting(at)
        name, end, read = tag
        if name in markup.HIDDEN and not text.endswith("/>", at, end):
            self._hide(re.compile(rf"</{name}\s{{0,16}}>", re.IGNORECASE))
        return (at, end, read) if end > at else kept(at + 1)


def _fence_end(mark: str) -> re.Pattern[str]:
    ticks = f"{re.escape(mark[0])}{{{len(mark)},16}}"
    return re.compile(rf"[\n\r][ \t>]{{0,16}}{ticks}[ \t]{{0,16}}(?=[\n\r]|\Z)")
