"""Where sentences end, in a text of which the rest is still to come.

A full stop ends a sentence in front of a space and a word that begins one, unless an abbreviation, an initial or an
ordinal stands before it. The marks of scripts that have no capitals, or no spaces, end it by themselves, and so do a
blank line and U+2028. What is decided stays decided whatever comes next.
"""

import re
from typing import NamedTuple

from fishs2_daemon.text.abbreviations import ABBREVIATIONS, BEFORE_NUMBER, BEFORE_ORDINAL, BEHIND_ORDINAL

LINE, PARAGRAPH = "\u2028", "\u2029"

#: A tag such as `[in a hurried tone]` is not cut; a bracket that is open for longer is none.
LONGEST_TAG = 100

#: A word is looked at for this many characters to tell whether a number before it is an ordinal.
_LONGEST_WORD = 16

#: Ideographic, Arabic, Urdu, Devanagari, Burmese, Khmer, Ethiopic: nothing else is written with them.
_STRONG = "。！？｡؟۔।॥။។።"
_CLOSERS = "'\"”’»›)\\]}」』）》】〕〉"
_END = re.compile(rf"([.!?…{_STRONG}]+)[{_CLOSERS}]*|[{LINE}{PARAGRAPH}]")
_IS_STRONG = re.compile(f"[{_STRONG}]")
_IDEOGRAPH = re.compile(r"[\u2e80-\u9fff\uac00-\ud7a3\U00020000-\U0003ffff]")
_OPENERS = re.compile(r"[\"'“‘«‹„‚»›(\[{¿¡*_—–-]{0,4}")
_BEFORE_WORDS = "([{\"'“„«¿¡*_—–"
_WORD = re.compile(r"\w+")
_WORD_PART = re.compile(r"[.\-/]")
_LONGEST_LEFT = 48


class End(NamedTuple):
    """A sentence ends before `at`; `open`: more text is needed to tell whether. `breaks`: the white space there is
    `LINE` or `PARAGRAPH`, or ordinary."""

    at: int
    open: bool = False
    breaks: str = ""


def next_end(text: str, start: int, *, final: bool) -> End | None:
    """The first end behind `start`. `text` begins with a sentence, and its white space is single characters."""
    has_tags = "[" in text
    for mark in _END.finditer(text, start):
        at = mark.end()
        if has_tags and in_tag(text, mark.start()):
            continue
        if not mark[1]:
            if mark[0] == LINE and at == len(text) and not final:
                return End(mark.start(), open=True)  # it may become a paragraph's
            return End(mark.start(), breaks=mark[0])
        if at == len(text):
            return None if final else End(mark.start(), open=True)
        following = text[at]
        if following.isspace():
            if at + 1 == len(text) and following != PARAGRAPH:
                return None if final else End(mark.start(), open=True)
            if following in (LINE, PARAGRAPH):
                return End(at, breaks=following)
            ends = True if _IS_STRONG.search(mark[1]) else _begins(text, at + 1, final)
            if ends and mark[0] == ".":
                ends = _ends_with_stop(text, mark.start(), final)
            if ends is None:
                return End(mark.start(), open=True)
        else:
            ends = bool(_IS_STRONG.search(mark[1])) or (mark[0] not in (".", "…") and bool(_IDEOGRAPH.match(following)))
        if ends:
            return End(at)
    return None


def in_tag(text: str, at: int) -> bool:
    left = max(at - LONGEST_TAG, 0)
    return text.rfind("[", left, at) > text.rfind("]", left, at)


def _begins(text: str, at: int, final: bool) -> bool | None:
    """Whether a sentence may begin here; None if more text is needed."""
    openers = _OPENERS.match(text, at)
    at = openers.end() if openers else at
    if at == len(text):
        return None if not final else False
    first = text[at]
    if text[at - 1] == "[":
        return True
    return (first.isalpha() and not first.islower()) or first.isdecimal() or first in "$€£¥₹<"


def _ends_with_stop(text: str, at: int, final: bool) -> bool | None:
    """Whether a full stop at `at`, before a space and a sentence's beginning, ends one."""
    left = text[max(at - _LONGEST_LEFT, 0) : at]
    word = "" if not left or left[-1].isspace() else left.rsplit(None, 1)[-1].lstrip(_BEFORE_WORDS)
    if not word:
        return True
    number_follows = text[at + 2].isdecimal()
    if word.isdecimal():
        return _ends_with_number(text, at, left[: -len(word)], word, number_follows, final)
    last = word if len(word) == 1 else _WORD_PART.split(word)[-1]
    if len(last) == 1 and last.lower() != last.upper():
        return False
    return last.lower() not in (BEFORE_NUMBER if number_follows else ABBREVIATIONS)


def _ends_with_number(text: str, at: int, before: str, number: str, number_follows: bool, final: bool) -> bool | None:
    if len(number) > 2:
        return True
    if number_follows or not before.strip():
        return False  # a date, or an item of a list
    *_, lead = ["", *_WORD.findall(before)]
    if lead.lower() in BEFORE_ORDINAL:
        return False
    word = _WORD.match(text, at + 2, at + 2 + _LONGEST_WORD)
    if word and word.end() == len(text) and not final and len(word[0]) < _LONGEST_WORD:
        return None
    return word is None or word[0].lower() not in BEHIND_ORDINAL
