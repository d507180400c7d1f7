"""The user's own readings: words and phrases, and what is said for them."""

import re
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Self

from fishs2_daemon.errors import ConfigError

MAX_ENTRIES = 2000
MAX_WRITTEN_CHARS = 100
MAX_SPOKEN_CHARS = 500
#: Room for a full table, and for remarks.
MAX_FILE_BYTES = 1024 * 1024

#: White space within a phrase may be a line break with its indentation, no more.
_MOST_SPACES = 8
#: Characters read at a time.
_BITE = 4096

#: Marks that belong to the letter before them; `\w` leaves them out.
_MARKS = (
    "\u0300-\u036f\u0483-\u0489\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u0900-\u0963\u0966-\u0dff\u0e31-\u0e4e"
)
#: Words are not parted by spaces here: each character is a word of its own, and a written form stands anywhere.
_UNPARTED = "\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_LETTER = rf"(?:(?![{_UNPARTED}])\w|[{_MARKS}])"
_TOKEN = re.compile(rf"[{_UNPARTED}]|{_LETTER}++|[^\w\s]")
_WORD = re.compile(rf"{_LETTER}++")
_LETTER_AT = re.compile(_LETTER)
_SPACES = re.compile(rf"\s{{1,{_MOST_SPACES}}}")


class _Match(Enum):
    NO = auto()
    OPEN = auto()  # more text is needed to tell


@dataclass(frozen=True, slots=True)
class _Entry:
    parts: tuple[str, ...]
    spoken: str
    exact: bool

    def match(self, text: str, at: int, *, final: bool) -> int | _Match:
        """Where the entry ends if it stands at `at`."""
        for index, part in enumerate(self.parts):
            if index:
                spaces = _SPACES.match(text, at)
                if spaces is None:
                    return _Match.OPEN if at == len(text) and not final else _Match.NO
                at = spaces.end()
            found = text[at : at + len(part)]
            if not self.exact:
                found = found.lower()
            if found != part:
                begun = at + len(part) > len(text) and part.startswith(found) and not final
                return _Match.OPEN if begun else _Match.NO
            at += len(part)
        if not _LETTER_AT.match(self.parts[-1], len(self.parts[-1]) - 1):
            return at
        if at == len(text) and not final:
            return _Match.OPEN
        return _Match.NO if _LETTER_AT.match(text, at) else at


class Replacements:
    """A table of written forms and spoken ones; where several fit, the longest is taken.

    A written form stands for whole words only, in any case unless it has upper case letters itself. Raises
    `ConfigError` for an entry that is empty, too long, or there twice.
    """

    def __init__(self, spoken: Mapping[str, str] | None = None) -> None:
        self._entries: dict[str, list[_Entry]] = {}
        self._written: set[str] = set()
        for written, said in (spoken or {}).items():
            self._add(written, said)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read lines of `written = spoken`; blank lines and those that begin with `#` say nothing.

        Raises `ConfigError`, which names the file and the line.
        """
        table = cls()
        for number, line in enumerate(_lines(path), 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            written, equals, said = line.partition("=")
            try:
                if not equals:
                    raise ConfigError("an entry is `written = spoken`")
                table._add(written, said)
            except ConfigError as error:
                raise ConfigError(f"{path}, line {number}: {error}") from None
        return table

    def __bool__(self) -> bool:
        return bool(self._entries)

    def firsts(self) -> Iterable[str]:
        """The words and signs with which entries begin, in lower case."""
        return self._entries

    def token(self) -> re.Pattern[str]:
        """What an entry may begin with: words, and those signs with which one does."""
        signs = "".join(re.escape(first) for first in self._entries if not _WORD.match(first))
        return re.compile(rf"{_WORD.pattern}|[{signs}]") if signs else _WORD

    def beginning(self, first: str) -> list[_Entry]:
        """The entries that begin with this word or sign, the longest first."""
        return self._entries.get(first.lower(), [])

    def _add(self, written: str, said: str) -> None:
        parts = written.split()
        written, said = " ".join(parts), " ".join(said.split())
        if not parts:
            raise ConfigError("nothing is written before the =")
        if len(written) > MAX_WRITTEN_CHARS or len(said) > MAX_SPOKEN_CHARS:
            raise ConfigError(
                f"{written[:MAX_WRITTEN_CHARS]!r}: at most {MAX_WRITTEN_CHARS} characters may be written for at most "
                f"{MAX_SPOKEN_CHARS} spoken ones"
            )
        if written in self._written:
            raise ConfigError(f"{written!r} is there twice")
        if len(self._written) == MAX_ENTRIES:
            raise ConfigError(f"more than {MAX_ENTRIES} replacements")
        first = _TOKEN.match(written)
        if first is None:
            raise ConfigError(f"{written!r} does not begin with a letter, a number or a sign")
        self._written.add(written)
        entries = self._entries.setdefault(first[0].lower(), [])
        entry = _Entry(tuple(parts), said, exact=written != written.lower())
        insort(entries, entry, key=lambda each: (-sum(map(len, each.parts)), not each.exact))


class Replacer:
    """`feed` chunks, `finish` at the end; the joined answers are the same however the text was cut into chunks.

    Held back is only what may still become a written form of the table.
    """

    def __init__(self, table: Replacements) -> None:
        self._table = table
        self._token = table.token()
        self._firsts = sorted(table.firsts())
        self._held = ""
        self._in_word = False  # a word that is too long for the table goes on

    def feed(self, chunk: str) -> str:
        return "".join(self._replaced(chunk[at : at + _BITE], final=False) for at in range(0, len(chunk), _BITE))

    def finish(self) -> str:
        """The rest of the text; the next `feed` begins a new one."""
        rest = self._replaced("", final=True)
        self._in_word = False
        return rest

    @property
    def held(self) -> str:
        return self._held

    def _replaced(self, bite: str, *, final: bool) -> str:
        if not self._table:
            return bite
        text, at, plain = self._held + bite, 0, 0
        out: list[str] = []
        while found := self._token.search(text, at):
            start, at = found.span()
            if self._in_word and start == 0 and _LETTER_AT.match(text):
                if at < len(text):
                    self._in_word = False
                continue
            match, spoken = self._match(text, start, at, final)
            if match is _Match.OPEN:
                self._held, self._in_word = text[start:], False
                return "".join([*out, text[plain:start]])
            if isinstance(match, int):
                out += [text[plain:start], spoken]
                at = plain = match
        if text:
            self._in_word = bool(_LETTER_AT.match(text, len(text) - 1))
        self._held = ""
        return "".join([*out, text[plain:]])

    def _match(self, text: str, start: int, end: int, final: bool) -> tuple[int | _Match, str]:
        if end == len(text) and not final and self._may_become_first(text[start:end].lower()):
            return _Match.OPEN, ""
        for entry in self._table.beginning(text[start:end]):
            match = entry.match(text, start, final=final)
            if match is not _Match.NO:
                return match, entry.spoken
        return _Match.NO, ""

    def _may_become_first(self, begun: str) -> bool:
        index = bisect_left(self._firsts, begun)
        return index < len(self._firsts) and self._firsts[index].startswith(begun)


def _lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: longer than {MAX_FILE_BYTES} bytes")
    try:
        return raw.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}, line {raw.count(bytes([10]), 0, error.start) + 1}: not UTF-8") from None
