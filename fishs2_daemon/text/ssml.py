"""SSML (W3C Speech Synthesis Markup Language 1.1), reduced to what this daemon can speak.

Paragraphs, sentences and breaks are kept, emphasis becomes S2's `[emphasis]`, `<sub alias>` its alias. `<audio>`,
`<metadata>` and their like are left out. Of everything else, `<prosody>`, `<voice>`, `<say-as>`, `<phoneme>` and
unknown elements, the content is read as it stands.
"""

import re
from dataclasses import dataclass
from xml.parsers import expat

from fishs2_daemon.errors import InvalidRequest

#: Deeper than any document that a person or a program writes.
MAX_DEPTH = 64
MAX_ELEMENTS = 50_000
#: The longest break that is kept, as with other engines.
MAX_BREAK_S = 10.0

_STRENGTHS_S = {"none": 0.0, "x-weak": 0.1, "weak": 0.25, "medium": 0.5, "strong": 1.0, "x-strong": 1.5}
_TIME = re.compile(r"\+?([0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})(ms|s)")
_SPACES = re.compile(r"\s+")
_WHOLE_DOCUMENT = re.compile(r"\s*<(?:\?xml|!DOCTYPE|(?:\w+:)?speak\b)")
_ROOT, _ROOT_END = "<speak>", "</speak>"

_APART = {"p": "\n\n", "paragraph": "\n\n", "s": "\u2028", "sentence": "\u2028"}
_LEFT_OUT = frozenset(["audio", "desc", "lexicon", "meta", "metadata"])


@dataclass(frozen=True, slots=True)
class Break:
    pause_s: float


def parse(text: str) -> list[str | Break]:
    """The texts and breaks of a document, or of a fragment without `<speak>`; no two breaks follow each other.

    Only whole documents can be read. Raises `InvalidRequest` for malformed SSML, with line and column, and for any
    document type declaration: entities are never expanded.
    """
    is_fragment = not _WHOLE_DOCUMENT.match(text)
    document = _Document(len(_ROOT) if is_fragment else 0)
    document.read(_ROOT + text + _ROOT_END if is_fragment else text)
    return document.parts


class _Document:
    def __init__(self, shift: int) -> None:
        self.parts: list[str | Break] = []
        self._shift = shift  # of the first line's columns
        self._open: list[str] = []
        self._elements = 0
        self._last_said = ""  # where it parted sentences or paragraphs: two such in a row are one
        self._silent = 0  # depth of elements that are left out
        self._parser = parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.StartDoctypeDeclHandler = self._doctype

    def read(self, text: str) -> None:
        try:
            self._parser.Parse(text, True)
        except expat.ExpatError as error:
            raise self._error(expat.errors.messages[error.code], error.lineno, error.offset) from None
        except UnicodeEncodeError:
            raise InvalidRequest("the SSML has half a surrogate pair in it", param="input") from None

    def _error(self, what: str, line: int | None = None, column: int | None = None) -> InvalidRequest:
        line = self._parser.CurrentLineNumber if line is None else line
        column = self._parser.CurrentColumnNumber if column is None else column
        column = max(column - self._shift, 0) if line == 1 else column
        return InvalidRequest(f"the SSML is wrong at line {line}, column {column + 1}: {what}", param="input")

    def _doctype(self, *_: object) -> None:
        raise self._error("a document type declaration is not allowed")

    def _start(self, qualified: str, attributes: dict[str, str]) -> None:
        name = qualified.rpartition(":")[2].lower()
        self._open.append(name)
        self._elements += 1
        if len(self._open) > MAX_DEPTH:
            raise self._error(f"more than {MAX_DEPTH} elements within each other")
        if self._elements > MAX_ELEMENTS:
            raise self._error(f"more than {MAX_ELEMENTS} elements")
        if self._silent or name in _LEFT_OUT:
            self._silent += 1
        elif name == "sub" and "alias" in attributes:
            self._characters(attributes["alias"])
            self._silent += 1
        elif name == "break":
            self._add_break(attributes)
        elif name == "emphasis" and attributes.get("level", "moderate") in ("moderate", "strong"):
            self._add("[emphasis] ")
        else:
            self._add(_APART.get(name, ""))

    def _end(self, _: str) -> None:
        name = self._open.pop()
        if self._silent:
            self._silent -= 1
        else:
            self._add(_APART.get(name, ""))

    def _characters(self, text: str) -> None:
        if not self._silent:
            self._add(_SPACES.sub(" ", text))

    def _add(self, text: str) -> None:
        if text and text != self._last_said:
            self.parts.append(text)
        if text.strip(" "):
            self._last_said = text if text in _APART.values() else ""

    def _add_break(self, attributes: dict[str, str]) -> None:
        if time := attributes.get("time", "").strip():
            found = _TIME.fullmatch(time)
            if found is None:
                raise self._error(f"a break's time is written 500ms or 1.5s, not {time[:20]!r}")
            pause_s = float(found[1]) / (1000 if found[2] == "ms" else 1)
        else:
            strength = attributes.get("strength", "medium")
            if strength not in _STRENGTHS_S:
                raise self._error(f"a break's strength is one of {', '.join(_STRENGTHS_S)}, not {strength[:20]!r}")
            pause_s = _STRENGTHS_S[strength]
        while self.parts and (isinstance(last := self.parts[-1], Break) or not last.strip(" ")):
            gone = self.parts.pop()
            pause_s += gone.pause_s if isinstance(gone, Break) else 0.0
        self.parts.append(Break(min(pause_s, MAX_BREAK_S)))
