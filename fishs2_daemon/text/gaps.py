"""Text under construction in which layout becomes the gap between two pieces."""

import re
from enum import IntEnum


class Gap(IntEnum):
    """What parts a piece from the one before; the strongest that was met is written."""

    NONE = 0
    DROPPED = 1  # something was left out: a space, if two words would grow together
    SPACE = 2
    CELL = 3
    NEWLINE = 4
    LINE = 5
    PARAGRAPH = 6


_WRITTEN = {Gap.SPACE: " ", Gap.CELL: ", ", Gap.NEWLINE: "\n", Gap.LINE: "\u2028", Gap.PARAGRAPH: "\n\n"}

_SPACES = re.compile(r"[ \t]+")


class GappedText:
    """`put` pieces, `part` them by gaps, `take` what is written. There is no gap before the first piece."""

    def __init__(self) -> None:
        self._out: list[str] = []
        self._last = ""
        self.gap = Gap.NONE

    def part(self, gap: Gap) -> None:
        if gap > self.gap:
            self.gap = gap

    def put(self, text: str, *, trim: bool = False) -> None:
        """A gap takes up the spaces behind it. With `trim`, spaces within `text` and at its end count as one."""
        if self.gap >= Gap.SPACE:
            text = text.lstrip(" \t")
        piece = _SPACES.sub(" ", text.rstrip(" \t")) if trim else text
        if piece:
            if self.gap and self._last:
                self._out.append(self._written(piece[0]))
            self.gap = Gap.NONE
            self._out.append(piece)
            self._last = piece[-1]
        if trim and text[-1:] in (" ", "\t"):
            self.part(Gap.SPACE)

    def _written(self, following: str) -> str:
        if self.gap is Gap.DROPPED:
            return " " if self._last.isalnum() and following.isalnum() else ""
        return _WRITTEN[self.gap]

    def take(self) -> str:
        text = "".join(self._out)
        self._out.clear()
        return text
