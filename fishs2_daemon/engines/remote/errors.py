"""What can be wrong with an upstream, and what it says of that. All of it reaches the caller as an `EngineError`,
save that all are busy: `Busy`.

EngineError
  UpstreamError         the text begins with the server's address
    UpstreamFailed      it is gone, broken, or makes no sense: another one may do
    UpstreamBusy        it asks for patience
    UpstreamRefused     it does not take the request, and another one would not either
      UpstreamLacks     it has no such route, model or voice
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from fishs2_daemon.errors import EngineError

#: Longer explanations are cut.
_MESSAGE_CHARS = 300

#: Of several servers; who has more has a log.
_REASONS = 8

#: A server that says nothing of when to come back, or "at once", which is now again, and one that says "next week".
_RETRY_AFTER_S = 1.0
_LONGEST_RETRY_AFTER_S = 60.0


class UpstreamError(EngineError):
    pass


class UpstreamFailed(UpstreamError):
    """`is_gone`: nobody is there."""

    def __init__(self, message: str, *, is_gone: bool = False) -> None:
        super().__init__(message)
        self.is_gone = is_gone


class UpstreamBusy(UpstreamError):
    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UpstreamRefused(UpstreamError):
    pass


class UpstreamLacks(UpstreamRefused):
    pass


class BrokenBody(ValueError):
    """An answer that cannot be read as audio; whose it is is not known here."""


def message_in(body: bytes) -> str:
    """The words of an error's body, in any of the shapes that servers have; printable, and not long."""
    try:
        found = message_of(json.loads(body))
    except (ValueError, RecursionError):
        found = ""
    return found or _printable(body.decode("utf-8", "replace"))


def message_of(error: Any) -> str:
    """Of `{"error": {"message": ...}}`, `{"error": "..."}`, `{"message": ...}`, `{"detail": ...}` and of FastAPI's
    `{"detail": [{"msg": ...}]}`; empty where nothing is said."""
    for _ in range(4):
        if isinstance(error, str):
            return _printable(error)
        if isinstance(error, list):
            error = error[0] if error else None
        elif isinstance(error, dict):
            keys = ("error", "message", "detail", "msg")
            error = next((error[key] for key in keys if error.get(key)), None)
    return ""


def reasons_in(texts: Iterable[str]) -> str:
    """What several servers say, each thing once."""
    reasons = list(dict.fromkeys(texts))
    more = f"; and {len(reasons) - _REASONS} more" if len(reasons) > _REASONS else ""
    return "; ".join(reasons[:_REASONS]) + more


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Of `Retry-After`, in seconds or as a date."""
    told = headers.get("retry-after", "").strip()
    seconds = _RETRY_AFTER_S
    if told.isascii() and told.isdigit() and len(told) <= 9:
        seconds = float(told)
    elif told:
        with suppress(TypeError, ValueError):
            seconds = (parsedate_to_datetime(told) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, _RETRY_AFTER_S), _LONGEST_RETRY_AFTER_S)


def _printable(text: str) -> str:
    words = " ".join("".join(char if char.isprintable() else " " for char in text[: 4 * _MESSAGE_CHARS]).split())
    return words if len(words) <= _MESSAGE_CHARS else words[:_MESSAGE_CHARS] + "..."
