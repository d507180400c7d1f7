"""Markdown at the beginning of a line: what a reader sees as layout, and a listener should not hear."""

import re
from enum import Enum, auto
from typing import NamedTuple

#: A line whose first this many characters are all `-`, `=`, `|` and the like is a rule, whatever follows.
LONGEST_RULE = 256
#: The first line of a code block holds its language; a longer one is text.
LONGEST_FENCE_LINE = 128

_RULE = re.compile(rf"[-*_=|:+ \t]{{1,{LONGEST_RULE}}}")
_DRAWN = re.compile(r"[-*_=][ \t]*[-*_=|:+][-*_=|:+ \t]*[-*_=|:+]|[|:+][-:|+ \t]*-")
_FENCE = re.compile(rf"(`{{3,8}}|~{{3,8}})[^`\n\r]{{0,{LONGEST_FENCE_LINE}}}")
_HEADING = re.compile(r"#{1,6}(?=[ \t\n\r]|\Z)")
_BULLET = re.compile(r"[-*+•‣◦▪●·](?:[ \t]+|(?=[\n\r]|\Z))")
_BULLET_MARKS = "-*+•‣◦▪●·"
_NUMBER = re.compile(r"([0-9]{1,3})[.)][ \t]")
_NUMBER_BEGUN = re.compile(r"[0-9]{1,3}[.)]?\Z")
_BOX = re.compile(r"\[[ xX]\][ \t]")
_BOX_BEGUN = re.compile(r"\[(?:[ xX]\]?)?\Z")


class BlockKind(Enum):
    PLAIN = auto()
    HEADING = auto()
    ITEM = auto()
    NUMBERED = auto()  # an item whose number is read
    ROW = auto()
    RULE = auto()
    FENCE = auto()


class Block(NamedTuple):
    """What begins here; the text goes on at `end`. `mark` is a fence's, a rule's or a number's own text."""

    kind: BlockKind
    end: int
    mark: str = ""


def block_at(text: str, at: int, *, final: bool, in_item: bool) -> Block | None:
    """The block that begins at `at`, behind the indentation; None if more text is needed to tell.

    `in_item`: an item's bullet stands before `at`, so that a check box may follow.
    """
    first = text[at]
    if first in "`~" and (fence := _fence(text, at, final)) is not _NO:
        return fence
    if first in "-*_=|:+" and (rule := _rule(text, at, final)) is not _NO:
        return rule
    if first == "#":
        heading = _HEADING.match(text, at)
        if heading and heading.end() == len(text) and not final:
            return None
        return Block(BlockKind.HEADING, heading.end()) if heading else Block(BlockKind.PLAIN, at)
    if first in _BULLET_MARKS:
        if at + 1 == len(text) and not final:
            return None
        if bullet := _BULLET.match(text, at):
            return Block(BlockKind.ITEM, bullet.end())
    if first in "0123456789":
        if number := _NUMBER.match(text, at):
            return Block(BlockKind.NUMBERED, at, number[1])
        return None if _NUMBER_BEGUN.match(text, at) and not final else Block(BlockKind.PLAIN, at)
    if first == "|":
        return Block(BlockKind.ROW, at + 1)
    if in_item and first == "[":
        if box := _BOX.match(text, at):
            return Block(BlockKind.PLAIN, box.end())
        if _BOX_BEGUN.match(text, at) and not final:
            return None
    return Block(BlockKind.PLAIN, at)


_NO = Block(BlockKind.PLAIN, -1)


def _fence(text: str, at: int, final: bool) -> Block | None:
    mark = text[at] * 3
    if not text.startswith(mark, at):
        return None if mark.startswith(text[at:]) and not final else _NO
    fence = _FENCE.match(text, at)
    if fence is None:
        return _NO
    if fence.end() == len(text):
        if final:
            return Block(BlockKind.FENCE, fence.end(), fence[1])
        return None if fence.end() - fence.end(1) < LONGEST_FENCE_LINE else _NO
    return Block(BlockKind.FENCE, fence.end(), fence[1]) if text[fence.end()] in "\n\r" else _NO


def _rule(text: str, at: int, final: bool) -> Block | None:
    rule = _RULE.match(text, at)
    if rule is None:
        return _NO
    at_end = rule.end() == len(text)
    if rule.end() - at < LONGEST_RULE:
        if at_end and not final:
            return None
        if not at_end and text[rule.end()] not in "\n\r":
            return _NO
    return Block(BlockKind.RULE, rule.end(), rule[0]) if _DRAWN.search(rule[0]) else _NO
