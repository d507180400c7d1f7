"""Marks within a line: what is read for each of them.

A reader looks at `text[at]` and answers with a `Reading`; the text before `at` is at hand for `BEHIND` characters.
"""

import re
import unicodedata
from collections.abc import Callable

from fishs2_daemon.text import markup
from fishs2_daemon.text.gaps import Gap
from fishs2_daemon.text.links import Link, bracket_at, url_at
from fishs2_daemon.text.unspoken import CONTROL, EMOJI, INVISIBLE, JOINERS, KEYCAP, VARIATION

#: What stands for text[start:end]; `end` < 0: more text is needed from `start` on.
Reading = tuple[int, int, str | Gap]

BEHIND = 8
#: A run of stars, backticks or the like this long means what a longer one means.
LONGEST_RUN = 8

_SUPERSCRIPTS = "¹²³⁰⁴-⁹"
#: Every character that is not simply copied.
_MARKS = rf"\n\r\u2028\u2029*_~`\[!<&\\|:wW†‡{_SUPERSCRIPTS}{EMOJI}{KEYCAP}{VARIATION}{INVISIBLE}{JOINERS}{CONTROL}"
MARK = re.compile(f"[{_MARKS}]")
#: Where the target of a link around an image is still to come.
BADGE_MARK = re.compile(rf"[{_MARKS}\]]")
#: Within backticks.
CODE_MARK = re.compile(rf"[\n\r\u2028\u2029`{EMOJI}{VARIATION}{INVISIBLE}{CONTROL}]")
#: What may turn out to be an address or a keycap at the end of what is at hand.
LONGEST_TAIL = len("https")
TAIL = re.compile(r"(?:(?<![A-Za-z0-9_])(?:https?|htt?|h)|[0-9#])\Z", re.IGNORECASE)

_PICTURES = re.compile(rf"[{EMOJI}{VARIATION}{INVISIBLE}]+")
_CONTROLS = re.compile(rf"[{CONTROL}]+")
_POWERS = re.compile(rf"[{_SUPERSCRIPTS}]{{1,{LONGEST_RUN}}}")
_SENTENCE_MARKS = tuple(".,;:!?)”\"'»’")
_STARS, _LINES, _WAVES = re.compile(r"\*+"), re.compile("_+"), re.compile("~+")
_BACKSLASHES, _ANGLES, _AMPERSANDS, _BRACKETS = (
    re.compile(r"\\+"),
    re.compile("<+"),
    re.compile("&+"),
    re.compile(r"\[+"),
)
_BANGS, _COLONS = re.compile("!+"), re.compile(":+")
_LETTERS = re.compile("[A-Za-z]*")
_SCHEME_ENDS = tuple("psPS")
_SCHEME = re.compile(r"(?<![A-Za-z0-9_])https?\Z", re.IGNORECASE)
_ASCII_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
_IDEOGRAPH = re.compile(r"[\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")


def read_mark(text: str, at: int, final: bool) -> Reading:
    """What is read for a mark, `MARK` without line ends, backticks, `]`, `|` and `<`+`|`."""
    return _READERS.get(text[at], _unspoken)(text, at, final)


def waiting(start: int) -> Reading:
    return start, -1, ""


def kept(end: int) -> Reading:
    return end, end, ""


def _shortened(at: int, end: int) -> Reading:
    return (at, end - LONGEST_RUN, "") if end - at > LONGEST_RUN else waiting(at)


def _emphasis(text: str, at: int, final: bool) -> Reading:
    run = (_STARS if text[at] == "*" else _LINES).match(text, at)
    end = run.end() if run else at + 1
    if end == len(text) and not final:
        return _shortened(at, end)
    before, after = text[at - 1 : at] or " ", text[end : end + 1] or " "
    if after in ("\ufe0f", KEYCAP):
        return at, end, ""
    return kept(end) if _is_sign(text[at], end - at, before, after) else (at, end, "")


def _is_sign(mark: str, length: int, before: str, after: str) -> bool:
    """Whether stars or underscores are a part of the text: `2 * 3`, `2*3`, `a*(b+c)`, `2**3`, `snake_case`."""
    if length > 2:
        return False
    if before.isspace() and after.isspace():
        return length == 1
    if before.isalnum() and after.isalnum():
        if mark == "_":
            return True
        if length > 1:
            return before.isdigit() and after.isdigit()
        return not _IDEOGRAPH.match(before) and not _IDEOGRAPH.match(after)
    return length == 1 and mark == "*" and (before.isdigit() or before == ")") and (after.isdigit() or after == "(")


def _struck(text: str, at: int, final: bool) -> Reading:
    run = _WAVES.match(text, at)
    end = run.end() if run else at + 1
    if end == len(text) and not final:
        return _shortened(at, end)
    return kept(end) if end == at + 1 else (at, end, "")


def _escape(text: str, at: int, final: bool) -> Reading:
    run = _BACKSLASHES.match(text, at)
    end = run.end() if run else at + 1
    pairs = (end - at) // 2
    if pairs:
        return at, at + 2 * pairs, "\\" * pairs
    if end == len(text):
        return kept(end) if final else waiting(at)
    return (at, end + 1, text[end]) if text[end] in _ASCII_PUNCTUATION else kept(end)


def _bracket(text: str, at: int, final: bool) -> Reading:
    run = _BRACKETS.match(text, at)
    last = run.end() - 1 if run else at
    if last > at:
        return kept(last)
    return _linked(text, at, at, final)


def _image(text: str, at: int, final: bool) -> Reading:
    run = _BANGS.match(text, at)
    last = run.end() - 1 if run else at
    if last > at:
        return kept(last)
    if at + 1 == len(text):
        return kept(at + 1) if final else waiting(at)
    return _linked(text, at + 1, at, final) if text[at + 1] == "[" else kept(at + 1)


def _linked(text: str, bracket: int, start: int, final: bool) -> Reading:
    link = bracket_at(text, bracket, final=final)
    if link is None:
        return waiting(start)
    return (start, link.end, link.inner) if isinstance(link, Link) else kept(bracket + 1)


def _angle(text: str, at: int, final: bool) -> Reading:
    run = _ANGLES.match(text, at)
    last = run.end() - 1 if run else at
    return kept(last) if last > at else kept(at + 1)


def _entity(text: str, at: int, final: bool) -> Reading:
    run = _AMPERSANDS.match(text, at)
    last = run.end() - 1 if run else at
    if last > at:
        return kept(last)
    entity = markup.entity_at(text, at, final=final)
    if entity is None:
        return waiting(at)
    return (at, entity[1], entity[0]) if entity[1] > at else kept(at + 1)


def _scheme(text: str, at: int, final: bool) -> Reading:
    if text[at - 1 : at] not in _SCHEME_ENDS:
        run = _COLONS.match(text, at)
        return kept(run.end() if run else at + 1)
    scheme = _SCHEME.search(text, max(at - BEHIND - 2, 0), at)
    if not scheme:
        return kept(at + 1)
    if not text.startswith("://", at):
        begun = "://".startswith(text[at : at + 3]) and len(text) - at < 3
        return waiting(scheme.start()) if begun and not final else kept(at + 1)
    return _address(text, scheme.start(), at + 1, final)


def _www(text: str, at: int, final: bool) -> Reading:
    letters = _LETTERS.match(text, at)
    end = letters.end() if letters else at + 1
    if (
        end - at > 3
        or text[at:end].lower() != "www"[: end - at]
        or (at and text[at - 1].isascii() and (text[at - 1].isalnum() or text[at - 1] == "_"))
    ):
        return kept(end)
    if end == len(text) and not final:
        return waiting(at)
    return _address(text, at, end, final) if text[at : at + 4].lower() == "www." else kept(end)


def _address(text: str, start: int, otherwise: int, final: bool) -> Reading:
    address = url_at(text, start, final=final)
    if address is None:
        return waiting(start)
    host, end = address
    if end == start:
        return kept(otherwise)
    if text[start - 1 : start] == "<" and text.startswith(">", end):
        return start, end + 1, host
    return start, end, host


def _note_mark(text: str, at: int, final: bool) -> Reading:
    """`word¹` has a note, `m²` and `10³` have a power."""
    if text[at] in "†‡":
        return (at, at + 1, "") if at and not text[at - 1].isspace() else kept(at + 1)
    run = _POWERS.match(text, at)
    end = run.end() if run else at + 1
    if end == len(text) and end - at < LONGEST_RUN and not final:
        return waiting(at)
    before = text[max(at - 3, 0) : at]
    is_note = (len(before) == 3 and before.isalpha()) or before[-1:] in _SENTENCE_MARKS
    return (at, end, "") if is_note else kept(end)


def _joiner(text: str, at: int, final: bool) -> Reading:
    """Zero-width joiners spell some words, and glue some emoji."""
    if at + 1 == len(text) and not final:
        return waiting(at)
    spells = all(char and unicodedata.category(char)[0] in "LM" for char in (text[at - 1 : at], text[at + 1 : at + 2]))
    return kept(at + 1) if spells else (at, at + 1, "")


def _keycap(text: str, at: int, final: bool) -> Reading:
    """Its variation selector, and it; the digit goes with them."""
    end = at + 1
    if text[at] != KEYCAP:
        if end == len(text) and not final:
            return waiting(at - 1 if text[at - 1 : at] in _KEYS else at)
        if not text.startswith(KEYCAP, end):
            return at, end, ""
        end += 1
    return (at - 1 if text[at - 1 : at] in _KEYS else at), end, Gap.DROPPED


_KEYS = tuple("0123456789#")


def _unspoken(text: str, at: int, final: bool) -> Reading:
    if controls := _CONTROLS.match(text, at):
        return at, controls.end(), Gap.SPACE
    if text[at] in (KEYCAP, "\ufe0f"):
        return _keycap(text, at, final)
    pictures = _PICTURES.match(text, at)
    end = pictures.end() if pictures else at + 1
    return at, end, "" if _INVISIBLE.fullmatch(text, at, end) else Gap.DROPPED


_INVISIBLE = re.compile(rf"[{VARIATION}{INVISIBLE}]+")

_READERS: dict[str, Callable[[str, int, bool], Reading]] = {
    "*": _emphasis, "_": _emphasis, "~": _struck, "\\": _escape, "[": _bracket, "!": _image, "<": _angle,
    "&": _entity, ":": _scheme, "w": _www, "W": _www, "†": _note_mark, "‡": _note_mark,
    **dict.fromkeys("¹²³⁰⁴⁵⁶⁷⁸⁹", _note_mark), **dict.fromkeys(JOINERS, _joiner),
}  # fmt: skip
