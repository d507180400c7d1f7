"""HTML in a text: tags, entities, and control tokens of language models."""

import html
import re

from fishs2_daemon.text.unspoken import CONTROL, EMOJI, INVISIBLE, VARIATION

#: `<` that is not closed within this many characters is text.
LONGEST_TAG = 512


def _names(names: str) -> frozenset[str]:
    return frozenset(names.split())


#: Tags of these names are markup; `List<String>` and `a<b` with anything else are text.
_INLINE = _names(
    "a abbr acronym address area audio b base basefont bdi bdo big button canvas cite code data datalist del dfn em "
    "embed font form i iframe img input ins kbd label lang legend link map mark meta meter nobr object optgroup option "
    "output param picture progress q rp rt ruby s samp say-as select slot small source span strike strong sub sup "
    "template textarea time track tt u var video voice w wbr prosody emphasis phoneme break speak"
)
_LINES = _names(
    "br caption center dd dialog div dt fieldset figcaption figure footer frame header hgroup li main menu nav "
    "noscript search section summary details tbody tfoot thead tr aside article body html"
)
_PARAGRAPHS = _names("blockquote dl h1 h2 h3 h4 h5 h6 hr ol p table title ul")
_CELLS = frozenset(["td", "th"])
#: What stands between such tags is not for the reader.
HIDDEN = frozenset(["head", "math", "pre", "script", "style", "svg"])
_NAMES = _INLINE | _LINES | _PARAGRAPHS | _CELLS | HIDDEN
_BEGINNINGS = frozenset(name[:length] for name in _NAMES for length in range(len(name) + 1))

LINE, PARAGRAPH = "\u2028", "\n\n"
CELL = ", "

_NAME = re.compile(r"</?([A-Za-z][A-Za-z0-9-]{0,15})?")
_BARE_TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9-]{0,15})>")
_TAG = re.compile(
    r"</?[A-Za-z0-9-]+(?:\s+(?:async|autoplay|checked|controls|defer|disabled|hidden|loop|muted|open|required|selected"
    r"|[A-Za-z_:@][\w:.-]*+\s*=\s*(?:\"[^\"]*\"|'[^']*'|[^\s\"'=]+)))*\s*/?>"
)
_ALT = re.compile(r"""\salt\s*=\s*(?:"([^"]*)"|'([^']*)')""", re.IGNORECASE)

_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_ENTITY_BEGUN = re.compile(r"&(?:#(?:[0-9]{0,7}|[xX][0-9a-fA-F]{0,6})|[A-Za-z][A-Za-z0-9]{0,31})?\Z")
_NOT_READ = re.compile(f"[{EMOJI}{VARIATION}{INVISIBLE}]")
_SPACES = re.compile(f"[{CONTROL}\\s]")

_CONTROL_TOKEN = re.compile(r"<\|([^|<>\n\r]{0,64})\|>")
_CONTROL_BEGUN = re.compile(r"<\|[^|<>\n\r]{0,64}\|?\Z")


def control_token_at(text: str, at: int, *, final: bool) -> tuple[str, int] | None:
    """What stands between `<|` and `|>`, and where it ends (`at` if it is none); None if more text is needed."""
    if token := _CONTROL_TOKEN.match(text, at):
        return token[1], token.end()
    return None if _CONTROL_BEGUN.match(text, at) and not final else ("", at)


def tag_at(text: str, at: int, *, final: bool) -> tuple[str, int, str] | None:
    """The lower-case name of the tag at `at`, "/" before it if it closes; its end (`at` if it is no tag); what is read
    for it. None if more text is needed."""
    no_tag = ("", at, "")
    if bare := _BARE_TAG.match(text, at):
        name = bare[2].lower()
        return (bare[1] + name, bare.end(), _read(name, "")) if name in _NAMES else no_tag
    named = _NAME.match(text, at)
    name = (named[1] or "").lower() if named else ""
    if named is None or (name if named.end() < len(text) else "") not in _NAMES | {""}:
        return no_tag
    if named.end() == len(text):
        return None if name in _BEGINNINGS and not final else no_tag
    if name not in _NAMES or text[named.end()] not in " \t\n\r/>":
        return no_tag
    end = text.find(">", at, at + LONGEST_TAG) + 1
    other = text.find("<", at + 1, end or at + LONGEST_TAG)
    if not end:
        waits = other < 0 and len(text) - at < LONGEST_TAG and not final
        return None if waits else no_tag
    if other >= 0 or not _TAG.fullmatch(text, at, end):
        return no_tag
    closes = text[at + 1] == "/"
    return ("/" + name if closes else name), end, _read(name, text[at:end])


def _read(name: str, tag: str) -> str:
    if name in _PARAGRAPHS:
        return PARAGRAPH
    if name in _LINES:
        return LINE
    if name in _CELLS:
        return CELL
    alt = _ALT.search(tag) if name == "img" else None
    return html.unescape(alt[1] or alt[2] or "") if alt else ""


def entity_at(text: str, at: int, *, final: bool) -> tuple[str, int] | None:
    """The text of the entity at `at` and its end (`at` if it is none); None if more text is needed."""
    entity = _ENTITY.match(text, at)
    if entity is None:
        return None if _ENTITY_BEGUN.match(text, at) and not final else ("", at)
    read = html.unescape(entity[0])
    if read == entity[0]:
        return "", at
    return _SPACES.sub(" ", _NOT_READ.sub("", read)), entity.end()
