"""The regular expression by which a tokenizer splits a text, which is the file's and so anybody's.

The library searches with backtracking, and cannot be stopped: some expressions never come to an end. So the ways in
which one can match a run of characters are counted before the library sees it.
"""

import re

#: What a Split may be made of. Quantifiers stand behind one character or class; a group may be optional at most, so
#: that the ways to match grow with the run's length as the unbounded quantifiers multiply, and not exponentially.
_ATOM = re.compile(r"\\[pP]\{\^?\w+\}|\\[^\W\d_gkKXRpPx]|\\[^\w]|\[(?:\\.|[^\[\]\\])+\]|[^\\\[\](){}|*+?]", re.DOTALL)
_GROUP = re.compile(r"\((?:\?(?:i?:|=|!))?")
_QUANTIFIER = re.compile(r"(?P<sign>[*+?])[?+]?|\{(?P<least>\d{1,3})(?:,(?P<most>\d{0,3}))?\}\??")

#: Ways to divide a run by one quantifier without a near bound. The public expression has alternatives of two such, and
#: comes to three times the square in all; eight take a second for each of the texts above.
_RUN_WAYS = 1 << 10
_MAX_WAYS = 8 * _RUN_WAYS**2
_NEAR = 8

_MAX_PATTERN_CHARS = 1000

_MAX_DEPTH = 8


def problem_of(expression: str) -> str | None:
    """What is wrong with it, as the end of a sentence; None for one that is sure to come to an end."""
    if len(expression) > _MAX_PATTERN_CHARS:
        return f"of {len(expression)} characters"
    ways = _Expression(expression).ways()
    if ways is None:
        return "of which not all is supported"
    return "which may search without end" if ways > _MAX_WAYS else None


class _Expression:
    """Reads an expression from its start, and counts."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def ways(self) -> int | None:
        """None if it has parts that this does not know."""
        try:
            ways = self._alternatives(depth=0)
        except ValueError:
            return None
        return ways if self._at == len(self._text) else None

    def _alternatives(self, depth: int) -> int:
        ways = 0
        while True:
            ways += self._sequence(depth)
            if self._text[self._at : self._at + 1] != "|":
                return ways
            self._at += 1

    def _sequence(self, depth: int) -> int:
        ways = 1
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            ways = min(ways * self._item(depth), _MAX_WAYS + 1)
        return ways

    def _item(self, depth: int) -> int:
        if self._taken(_GROUP):
            if depth == _MAX_DEPTH:
                raise ValueError("groups too deep")
            ways = self._alternatives(depth + 1)
            if self._text[self._at : self._at + 1] != ")":
                raise ValueError("a group without end")
            self._at += 1
            quantifier = self._taken(_QUANTIFIER)
            if quantifier and quantifier["sign"] != "?":
                raise ValueError("a repeated group")
            return ways + bool(quantifier)
        if not self._taken(_ATOM):
            raise ValueError("no character")
        quantifier = self._taken(_QUANTIFIER)
        if not quantifier:
            return 1
        if quantifier["sign"]:
            return 2 if quantifier["sign"] == "?" else _RUN_WAYS
        least, most = quantifier["least"], quantifier["most"]
        ways = 1 if most is None else int(most or _RUN_WAYS) - int(least) + 1
        return ways if 0 < ways <= _NEAR else _RUN_WAYS

    def _taken(self, what: re.Pattern[str]) -> re.Match[str] | None:
        found = what.match(self._text, self._at)
        if found:
            self._at = found.end()
        return found
