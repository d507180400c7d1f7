"""Markdown links, images, footnote marks and bare addresses."""

import re
from dataclasses import dataclass

#: `[` that is not closed within this many characters, or on its line, is text.
LONGEST_BRACKET = 256
#: An address is held back until it ends, at most for this many characters.
LONGEST_URL = 2048

_BRACKET = re.compile(rf"\[([^\[\]\n\r]{{0,{LONGEST_BRACKET}}})")
_TARGET = re.compile(
    rf"\([ \t]*(<[^<>\n\r]{{0,{LONGEST_URL}}}>|[^\s<>()]{{0,{LONGEST_URL}}}(?:\([^\s()]{{0,{LONGEST_URL}}}\)[^\s()]*)?)"
    rf"""(?:[ \t]+(?:"[^"\n\r]{{0,{LONGEST_BRACKET}}}"|'[^'\n\r]{{0,{LONGEST_BRACKET}}}'))?[ \t]*\)"""
)
_TARGET_BEGUN = re.compile(r"""\([ \t]*[^\s]*(?:[ \t]+(?:["'][^\n\r]*)?)?\Z""")
#: `(softly)` behind `[whisper]` is no target: an address has one of these, or is empty.
_ADDRESS = re.compile(r"[/.#:@?]|\A<?>?\Z")
_FOOTNOTE = re.compile(r"\^\S+|[0-9]{1,3}(?:[ ]?[,;–-][ ]?[0-9]{1,3})*")

#: The scheme stands before the colon; the address ends before what closes a sentence or a bracket around it.
_URL = re.compile(
    r"(?:[hH][tT][tT][pP][sS]?://|[wW][wW][wW]\.)"
    rf"(?:[\w\-.~:/?#@!$&'*+,;=%]|\([\w\-.~:/?#@!$&'*+,;=%]{{0,{LONGEST_BRACKET}}}\)){{1,{LONGEST_URL}}}",
    re.ASCII,
)
#: An opening parenthesis at the end of what is there may belong to the address.
_PARENTHESIS_BEGUN = re.compile(rf"\([\w\-.~:/?#@!$&'*+,;=%]{{0,{LONGEST_BRACKET}}}\Z", re.ASCII)
_URL_BEGUN = re.compile(rf"[A-Za-z]+(?:://|\.)(?:\([\w\-.~:/?#@!$&'*+,;=%]{{0,{LONGEST_BRACKET}}})?\Z", re.ASCII)
_URL_TAIL = ".,;:!?'*_~"


@dataclass(frozen=True, slots=True)
class Link:
    """What stands for `[inner](target)`, up to `end`."""

    inner: str
    end: int


def bracket_at(text: str, at: int, *, final: bool) -> Link | str | None:
    """What `[` at `at` begins: a link (a footnote mark is one without text), "tag" for any other bracket, None if more
    text is needed to tell."""
    bracket = _BRACKET.match(text, at)
    if bracket is None:
        return "tag"
    end = bracket.end()
    if end == len(text):
        return "tag" if final or end - at > LONGEST_BRACKET else None
    if text[end] != "]":
        return "tag"
    end += 1
    if end == len(text) and not final:
        return None
    target = target_end(text, end, final=final)
    if target is None:
        return None
    if target > end:
        return Link(bracket[1], target)
    return Link("", end) if _FOOTNOTE.fullmatch(bracket[1]) else "tag"


def target_end(text: str, at: int, *, final: bool) -> int | None:
    """Where the `(target)` that begins at `at` ends; `at` if there is none, None if more text is needed to tell."""
    if not text.startswith("(", at):
        return at
    target = _TARGET.match(text, at)
    if target:
        return target.end() if _ADDRESS.search(target[1]) else at
    waits = not final and len(text) - at < LONGEST_URL and _TARGET_BEGUN.match(text, at)
    return None if waits else at


def url_at(text: str, at: int, *, final: bool) -> tuple[str, int] | None:
    """What is read for the address at `at`, its host, and where it ends (`at` if none does); None if more is needed."""
    url = _URL.match(text, at)
    if url is None:
        return None if _URL_BEGUN.match(text, at) and not final else ("", at)
    if url.end() == len(text) and not final and url.end() - at < LONGEST_URL:
        return None
    if not final and url.end() - at < LONGEST_URL and _PARENTHESIS_BEGUN.match(text, url.end()):
        return None
    whole = url[0].rstrip(_URL_TAIL)
    host = re.split(r"[/?#]", whole.partition("://")[2] or whole, maxsplit=1)[0]
    host = host.rpartition("@")[2].partition(":")[0]
    if host[:4].lower() == "www.":
        host = host[4:]
    return (host, at + len(whole)) if host else ("", at)
