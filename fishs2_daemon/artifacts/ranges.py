"""The arithmetic of resuming (RFC 9110, sections 13.1.5, 14.2 and 14.4)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")


class BadRange(ValueError):
    """The answer is not the part that was asked for."""


@dataclass(frozen=True, slots=True)
class Body:
    """A body's first byte is the file's byte `begin`; `total` is the file's length, None where the answer is silent."""

    begin: int
    total: int | None


def place(status: int, headers: Mapping[str, str], offset: int) -> Body:
    """Where the body of an answer belongs, to a request for the file from byte `offset` on.

    Raises `BadRange` for an answer whose bytes must not be written.
    """
    length = _number(headers.get("content-length"))
    if headers.get("content-encoding", "identity") != "identity":
        length = None  # it counts the packed bytes
    if status == 200:
        return Body(0, length)
    if status != 206:
        raise BadRange(f"status {status}")
    text = headers.get("content-range", "")
    if not (match := _CONTENT_RANGE.fullmatch(text.strip())):
        raise BadRange(f"a part without its place ({text!r})")
    first, last = int(match[1]), int(match[2])
    total = None if match[3] == "*" else int(match[3])
    if first != offset or last < first or (total is not None and last >= total):
        raise BadRange(f"{text!r} for the bytes from {offset} on")
    if length is not None and length != last - first + 1:
        raise BadRange(f"{text!r} in a body of {length} bytes")
    return Body(first, total)


def validator(headers: Mapping[str, str]) -> str:
    """What If-Range may carry: a strong ETag. Empty where there is none: a date, too, is the same for two versions of
    one second."""
    etag = headers.get("etag", "")
    return etag if etag.startswith('"') else ""


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 20 else None
