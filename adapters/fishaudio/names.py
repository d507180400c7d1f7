"""Names of voices as fish-speech's own server takes them; the voice store has them in lower case, without spaces."""

import re

from fishs2_daemon.voices.names import normalised

#: Nothing else is cut down to an id: `../anna` is not anna.
_NAME = re.compile(r"[a-zA-Z0-9\-_ ]{1,255}")

ALLOWED = "1 to 255 letters, digits, spaces, - and _"


def stored_id(name: str) -> str | None:
    """The id that a voice of that name is stored under; None for what is no name."""
    return (normalised(name) or None) if _NAME.fullmatch(name) else None
